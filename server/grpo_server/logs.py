"""Log lines for people or for machines, each with the id of the request that caused it."""

from __future__ import annotations

import logging
import logging.config
from contextvars import ContextVar
from typing import Literal

request_id: ContextVar[str] = ContextVar("request_id", default="-")


class RequestIdFilter(logging.Filter):
    """Adds `request_id` to every record: of the request that this task serves, or "-"."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id.get()
        return True


def configure(level: str, form: Literal["text", "json"]) -> None:
    """Send all logging of the process to stderr in one form. uvicorn's access log is off: `middleware.boundary` has its own."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "filters": {"request_id": {"()": RequestIdFilter}},
            "formatters": {
                "text": {"format": "%(asctime)s %(levelname)-7s %(name)s [%(request_id)s] %(message)s"},
                "json": {
                    "()": "pythonjsonlogger.json.JsonFormatter",
                    "format": "%(asctime)s %(levelname)s %(name)s %(request_id)s %(message)s",
                    "rename_fields": {"asctime": "time", "levelname": "level", "name": "logger"},
                },
            },
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": form, "filters": ["request_id"]}},
            "root": {"handlers": ["stderr"], "level": level.upper()},
            # Their chatter at our level would drown our own.
            "loggers": {name: {"level": max(level.upper(), "INFO", key=logging.getLevelName)} for name in _LOUD},
        }
    )


_LOUD = ("asyncio", "httpx", "httpcore", "urllib3", "filelock", "uvicorn.access")
