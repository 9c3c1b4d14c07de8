"""The command `grpo-server`. The order matters: the process environment is set before anything imports torch."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from types import FrameType

from grpo_client import tracing
from grpo_client.addresses import without_secrets
from grpo_client.extras import needs_extra
from grpo_client.models.demo import DemoModelMissing, locate
from grpo_client.models.files import UnusableModel
from pydantic import ValidationError
from rich.console import Console

from grpo_server.config import ENV_PREFIX, SECRETS, ServerConfig
from grpo_server.config.sources import load_config

EXIT_USAGE = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, set the environment, serve. Returns the exit status: 2 for bad settings, and for a model that is refused."""
    given = sys.argv[1:] if argv is None else argv
    if given[:1] == ["keys"]:
        from grpo_server.access.command import main as keys

        return keys(given[1:])
    try:
        config = load_config(given)
    except ValidationError as error:
        return _refuse(_faults(error))
    except ValueError as error:
        return _refuse([str(error)])
    for named in config.references:
        try:
            if named.base is None:
                locate(named.source)  # a path with no model needs no torch to be refused
        except (UnusableModel, DemoModelMissing) as error:
            return _refuse_model(named.source, str(error))
    if config.ray:
        return _serve_on_ray(config)
    if config.keys_file is not None or config.tls_cert is not None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nothing is read yet that could be read again
    with _leaving_at_a_signal(), _collector_off():
        return _serve(config)


def _serve_on_ray(config: ServerConfig) -> int:
    from grpo_server import logs

    logs.configure(config.log_level, config.log_format)
    with needs_extra("ray", "grpo-server --ray"):
        from grpo_server.ray.run import serve_on_ray
    return serve_on_ray(config)


def _serve(config: ServerConfig) -> int:
    from grpo_server.engine.environment import set_environment

    set_environment(config.mode, config.threads, share_cores=config.share_cores)

    from grpo_server import logs
    from grpo_server.stages import Stages

    logs.configure(config.log_level, config.log_format)
    tracing.configure("grpo-server")
    stages = Stages()
    stages.enter("import")

    # Only now: this imports torch, whose libraries read the environment once. Before any thread has a heap of its own.
    from grpo_numerics.heap import keep_freed_pages

    keep_freed_pages()

    from grpo_server.engine.contract import HostedEngine
    from grpo_server.process import ModelRefused, serve
    from grpo_server.swapping.resume import resumed
    from grpo_server.swapping.state import StateDir

    def load() -> HostedEngine:
        from grpo_server.engine.start import load_engine

        _all_imported()
        return load_engine(resumed(config, state), stages.enter)

    try:
        if config.tensor_parallel and os.environ.get("RANK", "0") != "0":
            from grpo_server.engine.start import follow

            _all_imported()
            follow(config.engine())
            return 0
        state = None if config.state_dir is None else StateDir(config.state_dir)
        return serve(config, load, stages, state)
    except (ModelRefused, UnusableModel) as error:
        return _refuse_model(" and ".join(named.source for named in config.references), str(error))
    except ValueError as error:  # a key file that cannot be used
        return _refuse([str(error)])


@contextmanager
def _collector_off() -> Generator[None]:
    """Until all is imported: that makes half a million objects, hardly one of them garbage, and the collector would look
    through them again and again, for a sixth of the time. What was frozen meanwhile is let go at the end: the interpreter
    takes itself down by collecting, and libraries complain of what is left."""
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.enable()


def _all_imported() -> None:
    """From here on garbage is collected; modules stay, and are never looked at again."""
    gc.freeze()
    gc.enable()


@contextmanager
def _leaving_at_a_signal() -> Generator[None]:
    """Until the server handles signals itself: ^C would be a traceback, and process 1 of a container is deaf to SIGTERM."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(0)

    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _refuse_model(source: str, reason: str) -> int:
    """The last line that a failed start leaves, whatever the log said before."""
    name = without_secrets(source) if "://" in source else source
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        f"grpo-server: {name} cannot be served: {reason}", markup=False
    )
    return EXIT_USAGE


def _faults(error: ValidationError) -> list[str]:
    """One line per fault, in the words of the flags."""
    lines: list[str] = []
    for fault in error.errors(include_url=False):
        name = str(fault["loc"][0]) if fault["loc"] else ""
        if fault["type"] == "missing":
            lines.append(f"--{name.replace('_', '-')} is needed (or {ENV_PREFIX}{name.upper()}, or {name} in the file)")
        elif fault["type"] == "extra_forbidden":
            lines.append(f"{name} is not a setting; grpo-server --help lists them")
        else:
            given = "" if name in ("", *SECRETS) else _shown(fault["input"])
            flag = f"--{name.replace('_', '-')}: " if name else ""
            lines.append(f"{flag}{fault['msg']}{given}")
    return lines


def _shown(value: object) -> str:
    """A value as an error may repeat it: no nest, in which a key may hide, and no password of a URL."""
    text = without_secrets(value) if isinstance(value, str) and "://" in value else value
    return f", got {text!r:.200}" if isinstance(value, str | int | float) else f", got a {type(value).__name__}"


def _refuse(faults: list[str]) -> int:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for fault in faults:
        console.print(f"grpo-server: {fault}", markup=False)
    console.print("grpo-server --help explains every setting", markup=False)
    return EXIT_USAGE
