"""What a process of `processes` does. It imports the function and as little else as can be."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from grpo_training.tasks.outcomes import Returned, failure
from grpo_training.tasks.resolving import resolve


def serve(pipe: Connection[Any, Any], name: str, arguments: Mapping[str, Any] | None) -> None:
    """In the process: call the function with whatever comes, until nothing does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's, which then closes the pipe
    function = resolve(name, arguments)
    pipe.send(None)
    while True:
        try:
            args, kwargs = pipe.recv()
        except EOFError:
            return
        try:
            value = function(*args, **kwargs)
            pipe.send(Returned(_plain(value)))
        except Exception as error:  # noqa: BLE001  # whatever a user's function raises is told to the trainer, whose rule decides
            pipe.send(failure(error))


def _plain(value: Any) -> Any:
    """Numbers as Python's own, so that what comes back needs no library to be read."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
