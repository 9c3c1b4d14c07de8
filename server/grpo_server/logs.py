"""Log lines for people or for machines, each with the id of the request that caused it.

What a client sends can forge no line: control characters never reach the log as they are, and what goes on over several
lines (a traceback, with the client's words in its last one) is indented.
"""

from __future__ import annotations

import logging
import logging.config
from contextvars import ContextVar
from typing import Literal

request_id: ContextVar[str] = ContextVar("request_id", default="-")

# Longer than any route; a longer path is a scanner's.
LOGGED_CHARACTERS = 300
CONTINUED = "\n    "


def loggable(text: str) -> str:
    """A client's text for a log line: one line, printable characters, the others escaped, cut at LOGGED_CHARACTERS."""
    cut = text[:LOGGED_CHARACTERS]
    shown = "".join(c if c.isprintable() and c != "\\" else _escaped(c) for c in cut)
    return shown if len(text) == len(cut) else f"{shown}... ({len(text)} characters)"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


class RequestIdFilter(logging.Filter):
    """Adds `request_id` to every record: of the request that this task serves, or "-"."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id.get()
        return True


class TextFormatter(logging.Formatter):
    """Records for people; only the first line of one begins at the margin. JSON escapes by itself."""

    def format(self, record: logging.LogRecord) -> str:
        lines = super().format(record).split("\n")
        return CONTINUED.join(
            "".join(c if c.isprintable() or c == "\t" else _escaped(c) for c in line) for line in lines
        )


def configure(level: str, form: Literal["text", "json"]) -> None:
    """Send all logging of the process to stderr in one form. uvicorn's access log is off: `middleware.boundary` has its own."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "filters": {"request_id": {"()": RequestIdFilter}},
            "formatters": {
                "text": {
                    "()": TextFormatter,
                    "fmt": "%(asctime)s %(levelname)-7s %(name)s [%(request_id)s] %(message)s",
                },
                "json": {
                    "()": "pythonjsonlogger.json.JsonFormatter",
                    "format": "%(asctime)s %(levelname)s %(name)s %(request_id)s %(message)s",
                    "rename_fields": {"asctime": "time", "levelname": "level", "name": "logger"},
                },
            },
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": form, "filters": ["request_id"]}},
            "root": {"handlers": ["stderr"], "level": level.upper()},
            # Their chatter at our level would drown our own.
            "loggers": {
                name: {"level": max(level.upper(), least, key=logging.getLevelName)} for name, least in _LOUD.items()
            },
        }
    )


_LOUD = dict.fromkeys(("asyncio", "httpx", "httpcore", "urllib3", "filelock", "uvicorn.access"), "INFO") | {
    # says "running" and "startup complete" while the model still loads; `serving` has lines of its own
    "uvicorn.error": "WARNING"
}
