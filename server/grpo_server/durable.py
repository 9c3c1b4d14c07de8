"""Files that are still there when the machine comes back, and disks that have no room for them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

# No space, no quota, or more than one file may have (`ulimit -f`).
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_full(error: BaseException | None) -> bool:
    """Whether this, or what it came of, is a disk without room."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        error = error.__cause__
    return False


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
