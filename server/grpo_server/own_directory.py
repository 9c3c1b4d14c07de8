"""A directory that belongs to one server at a time."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import TextIO


def lock_directory(path: Path, setting: str) -> TextIO:
    """Make the directory, for its owner alone, and lock it; it is free again when the file that is returned is closed, or the
    process ends. Raises ValueError, naming the setting, when it cannot be written or another server has it."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (path / "lock").open("w")
    except OSError as error:
        raise ValueError(f"{setting}: {path} cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise ValueError(f"{setting}: {path} is in use by another server; give each its own") from error
    return lock
