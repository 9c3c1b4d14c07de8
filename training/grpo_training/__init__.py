"""GRPO training against a reference that a server holds; the `grpo-train` command.

Talks to the server through `grpo_client` and knows nothing else of it. The parts are plain modules:

    config      what a run is told                  rollout     sample groups of completions
    tasks       problems and verifiable rewards     policy      their log-probs, with gradient
    models      load a policy                       reference   the same from the server, over HTTP
    losses      the objective, as functions         orthograd   any optimizer, orthogonal gradients
    objective   the same, as configured             evaluation  held-out questions
    sampling    who samples: policy or server       watch       softmax collapse, at intervals
    step, loop  one step, a whole run               checkpoint  stop and go on, bit for bit
    metrics, progress, plots                        what one sees of it
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name: str) -> str:
        """`__version__`, looked up when it is asked for."""
        if name == "__version__":
            from grpo_client.version import package_version

            return package_version()
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
