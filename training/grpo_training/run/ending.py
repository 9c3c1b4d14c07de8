"""How a command ends when it cannot go on: one sentence with the reason last, and a status that says whose fault it was.

2: it was told something impossible. 1: the reference, a teacher, a rollout server, an environment, a reward function, a
checkpoint or the disk failed it, or no step of it changed a weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from grpo_client import (
    ConnectionFailed,
    DeadlineExceeded,
    FingerprintMismatch,
    GrpoClientError,
    InvalidSetting,
    NotAuthorized,
    NotFound,
    Unavailable,
)
from grpo_client.models.demo import DemoModelMissing
from rich.console import Console
from rich.text import Text

from grpo_training.config import (
    CheckpointError,
    ConfigError,
    EnvironmentFailed,
    NothingTrained,
    OutputError,
    RewardError,
    RolloutError,
    TeacherError,
    TrainConfig,
)
from grpo_training.redaction import scrubbed


@contextmanager
def explained(console: Console, config: TrainConfig | None = None) -> Iterator[None]:
    """Turn what can go wrong in the block into a sentence and a status. config: of the run, once it is known."""
    try:
        yield
    except (ConfigError, InvalidSetting, DemoModelMissing) as error:  # InvalidSetting: a key in GRPO_API_KEY
        raise _end(console, "cannot start", error, 2) from error
    except CheckpointError as error:
        raise _end(console, "cannot resume", error, 1) from error
    except (RolloutError, EnvironmentFailed) as error:
        raise _end(console, f"cannot sample{_go_on(config)}", error, 1) from error
    except TeacherError as error:
        raise _end(console, f"cannot learn{_go_on(config)}", error, 1) from error
    except RewardError as error:
        raise _end(console, f"cannot reward{_go_on(config)}", error, 1) from error
    except NothingTrained as error:
        raise _end(console, "nothing was trained", error, 1) from error
    except OutputError as error:
        raise _end(console, f"cannot write{_go_on(config)}", error, 1) from error
    except NotAuthorized as error:
        who = f" {', '.join(config.reference.urls)}" if config else ""
        told = f"the reference{who} refused the API key (reference.api_key, or GRPO_API_KEY){_go_on(config)}"
        raise _end(console, told, error, 1) from error
    except NotFound as error:
        who = f" at {', '.join(config.reference.urls)}" if config else ""
        raise _end(console, f"what answers{who} (reference.urls) is no grpo-server", error, 1) from error
    except FingerprintMismatch as error:
        raise _end(console, f"another reference answers{_go_on(config)}", error, 1) from error
    except DeadlineExceeded as error:
        limit = f" for reference.max_wait={config.reference.max_wait:g} s" if config else ""
        raise _end(console, f"the reference stayed away{limit}{_go_on(config)}", error, 1) from error
    except (ConnectionFailed, Unavailable) as error:
        raise _end(console, f"the reference stayed away{_go_on(config)}", error, 1) from error
    except GrpoClientError as error:
        raise _end(console, "the reference failed", error, 1) from error


def _end(console: Console, what: str, error: Exception, status: int) -> typer.Exit:
    # Text, not markup: a path or a template may have brackets in it.
    console.print(Text.assemble((f"{what}: ", "red"), scrubbed(str(error))), soft_wrap=True)
    return typer.Exit(status)


def _go_on(config: TrainConfig | None) -> str:
    """What --resume would begin with, if there is anything."""
    newest = _newest(config.trainer.output) if config else None
    return f" (--resume goes on from {newest})" if newest else ""


def _newest(output: Path) -> Path | None:
    from grpo_training.run.checkpoint import Checkpoints  # imports torch, which a misspelt field does not wait for

    return Checkpoints(output / "checkpoints").latest()
