"""GRPO training against a reference that a server holds; the `grpo-train` command.

Talks to the server through `grpo_client` and knows nothing else of it. Its rooms:

    config      what a run is told                  rollouts    completions and their log-probs
    tasks       problems and verifiable rewards     losses      advantages, policy term, KL, the objective
    models      load a policy, keep its weights     orthograd   any optimizer, orthogonal gradients
    run         loop, step, checkpoints             report      metrics and plots
    collapse    softmax collapse, seen early        patching    StableMax for every cross-entropy
    hf, trl, axolotl                                doors for other trainers
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
