"""Writing so that a kill or a full disk leaves nothing half-done, and says what it was.

with whole_directory(output / "model") as draft:     the files appear together, under the name, or not at all
    model.save_pretrained(draft)
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from grpo_training.config import ConfigError, OutputError

_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR}


@contextmanager
def whole_directory(final: Path) -> Iterator[Path]:
    """A directory to write into, flushed and renamed to `final` at the end of the block; what was there before goes then."""
    draft, old = (final.with_name(f"{final.name}.{state}") for state in ("partial", "old"))
    for left in (draft, old):
        shutil.rmtree(left, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
        _flush(draft)
        if final.exists():
            os.replace(final, old)
        os.replace(draft, final)
    finally:
        for left in (draft, old):
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def disk_faults(output: Path) -> Iterator[None]:
    """Turn what a disk refuses into OutputError: no space, no permission, a file-system that is read-only."""
    try:
        yield
    except SafetensorError as error:  # says the number in words only
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OutputError(f"{output}: {os.strerror(int(number[1]))}") from error
    except OSError as error:
        if error.errno not in _FAULTS:
            raise
        raise OutputError(f"{error.filename or output}: {os.strerror(error.errno)}") from error


def check_writable(output: Path) -> None:
    """Make the directory and write into it. Raises ConfigError where that cannot be, before anything has been computed."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output) as probe:
            probe.write(b"x")
    except FileExistsError as error:
        raise ConfigError(f"trainer.output: {output} is a file, not a directory") from error
    except OSError as error:
        raise ConfigError(f"trainer.output: cannot write into {output}: {error.strerror}") from error


def _flush(directory: Path) -> None:
    """Force the files to disk before the rename that declares them complete."""
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
