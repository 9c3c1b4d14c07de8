"""The reference-policy service: a FastAPI app over a scheduler over an engine, and the command `grpo-server`.

    routes > scheduler > engine       imports go this way only

Routes translate a request into a `ScoreRequest` and its answer back; the scheduler decides what runs next and what is
refused; the engine owns the model. The command line reads `config`, then `serving` runs `app` around `service`.
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
