"""Files that are still there when the machine comes back."""

from __future__ import annotations

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Until this file's bytes, or this directory's names, are on disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def sync_below(directory: Path) -> None:
    """The same for a directory with all that is in it."""
    for path in directory.rglob("*"):
        sync(path)
    sync(directory)
