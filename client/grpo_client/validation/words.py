"""JSON values as they are spoken of in errors, and told apart."""

from __future__ import annotations

from typing import Any, cast

import numpy as np


def as_object(value: object) -> dict[str, Any] | None:
    """The value if it is a JSON object, else None."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def as_list(value: object) -> list[Any] | None:
    """The value if it is a JSON list, else None."""
    return cast("list[Any]", value) if isinstance(value, list) else None


def clipped(name: str) -> str:
    """A name that somebody sent, short enough to be given back in an error."""
    return name if len(name) <= 60 else f"{name[:60]}..."


def describe(value: Any) -> str:
    """A JSON reader's words for a value that should have been something else."""
    if isinstance(value, str):
        value = value[:40]  # the repr of 60 MB takes its time
    words = (
        (dict, "an object"),
        (list, "a list"),
        (np.ndarray, "a list"),
        (bool, "true or false"),
        (type(None), "null"),
    )
    return next((word for kind, word in words if isinstance(value, kind)), f"{value!r:.40}")
