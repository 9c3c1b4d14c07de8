"""Run as a script, in a process of its own: look through a model's files, or copy them. Needs only Python.

    python -I fetch_files.py SOURCE TARGET ROOT       TARGET "": only look; ROOT "": links may lead anywhere

Whatever blocks in here (a file system that does not answer, a pipe that nobody writes to) ends with the process, which ends
when its standard input does. It writes lines of JSON: {"total": bytes}, then {"path": where} or {"error": why, "full": whether
the disk is}.
"""

import errno
import json
import os
import shutil
import stat
import sys
import threading
from fnmatch import fnmatch

# What trainers leave beside a checkpoint, and no model needs.
_LEFT_OUT = ("optimizer*", "scheduler.pt", "rng_state*", "training_args.bin", "global_step*", "checkpoint-*", ".*")


class Unfit(Exception):
    pass


def tell(**line: object) -> None:
    print(json.dumps(line), flush=True)  # noqa: T201


def main(source: str, target: str, root: str) -> None:
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        files = [os.path.basename(source)] if os.path.isfile(source) else sorted(_files(source))
        base = os.path.dirname(source) if os.path.isfile(source) else source
        for name in files:
            _check(os.path.join(base, name), root)
        tell(total=sum(os.path.getsize(os.path.join(base, name)) for name in files))
        for name in files:
            if target:
                _copy(os.path.join(base, name), os.path.join(target, name))
        if target:
            _sync(target)
        tell(path=os.path.join(target, files[0]) if target and base != source else target or source)
    except Unfit as error:
        tell(error=str(error))
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        where = target if full else error.filename
        tell(error=f"{error.strerror}: {where}" if where else str(error), full=full)


def _files(directory: str) -> list[str]:
    """Relative paths, those left out that no model needs."""
    found = []
    for here, below, names in os.walk(directory, followlinks=True):
        below[:] = [n for n in below if not _left_out(n)]
        found += [os.path.relpath(os.path.join(here, n), directory) for n in names if not _left_out(n)]
    return found


def _left_out(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in _LEFT_OUT)


def _check(path: str, root: str) -> None:
    if root and os.path.commonpath([os.path.realpath(path), os.path.realpath(root)]) != os.path.realpath(root):
        raise Unfit(f"{path} leads out of the directory that models may be taken from (--swap-root)")
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise Unfit(f"{path} is no regular file")
    with open(path, "rb") as file:
        file.read(1)


def _copy(source: str, target: str) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    shutil.copyfile(source, target)
    _sync(target)


def _sync(path: str) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
