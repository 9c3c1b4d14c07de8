"""What a command says on standard error: one red line for a failure that is no bug, and whom it waits for meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.text import Text

from grpo_client.errors import GrpoClientError, InvalidSetting, ProtocolError
from grpo_client.http.retry_log import logger


@contextmanager
def told(console: Console) -> Generator[None]:
    """Show the library's log while the command runs. A failure that is no bug ends it with a line: status 2 when the
    command was told what cannot be, else 1.
    """
    handler = _Lines(console)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    except BrokenPipeError:  # whoever read our output has gone; the command ends as any does then
        raise
    except (GrpoClientError, ValueError, OSError) as error:
        console.print(Text.assemble(("error: ", "red"), str(error)), soft_wrap=True)
        # A ProtocolError here is an option's; those of lines and answers are told apart before, or are of a subclass.
        usage = isinstance(error, InvalidSetting) or type(error) is ProtocolError
        raise typer.Exit(2 if usage else 1) from error
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


class _Lines(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        color = "yellow" if record.levelno >= logging.WARNING else "green"
        word = record.levelname.lower()
        self._console.print(Text.assemble((f"{word}: ", color), record.getMessage()), soft_wrap=True)
