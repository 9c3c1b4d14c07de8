"""The directory of runs that --runs names, read piece by piece: which runs there are, and whole lines of their files.

What may be read is what a listing shows: directories below it, not hidden, and in them the files of `KNOWN`. Every part of a
path is opened by name below the one before it and links are not followed, so that neither a request nor a link that somebody
left in a run leads elsewhere. A run's config.json is not among the files: it may hold addresses and names of the owner's.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

KNOWN: Final = ("metrics.jsonl", "samples.jsonl", "eval.jsonl", "summary.json")
MOST_BYTES: Final = 2 * 2**20  # of one answer
MOST_RUNS: Final = 500
_BLOCK: Final = 65_536
_STEP: Final = re.compile(rb'\s*\{\s*"step"\s*:\s*(\d+)')


class NoSuchFile(LookupError):
    """There is no such run or file, or not one that is shown."""


class NotReadableSo(ValueError):
    """The file cannot be read as asked; the message says why and what to do. param: which part of the question is at fault."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True, slots=True)
class Piece:
    """content: bytes of the file from the first one asked for. next: where to go on. size: of the file, in bytes. file: changes
    when the file is written anew, as a run does that is resumed."""

    content: bytes
    next: int
    size: int
    file: str


class RunFiles:
    """root: holds a directory per run; or is one itself, which is then the only one of its name."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._own_name = root.resolve().name

    def runs(self) -> list[dict[str, Any]]:
        """name, changed (seconds since the epoch) and files (their size in bytes) of each run, the latest first; at most
        MOST_RUNS."""
        found: dict[str, dict[str, Any]] = {}
        with _opened(str(self._root)) as root:
            if files := _files(root):
                found[self._own_name] = files
            for name in os.listdir(root):
                if not _is_plain(name):
                    continue
                try:
                    with _opened(name, root) as run:
                        files = _files(run)
                except OSError:  # no directory, a link, or gone meanwhile
                    continue
                if files:
                    found[name] = files
        listed = [
            {"name": name, "changed": max(c for _, c in files.values()), "files": {n: s for n, (s, _) in files.items()}}
            for name, files in found.items()
        ]
        return sorted(listed, key=lambda run: run["changed"], reverse=True)[:MOST_RUNS]

    def after(self, run: str, file: str, after: int, most: int = MOST_BYTES) -> Piece:
        """Whole lines from byte `after` on, as many as `most` bytes hold. A last line without its newline is left for later."""
        with self._file(run, file) as (fd, about):
            size = about.st_size
            if after > size:
                raise NotReadableSo("after", f"is {after} and the file ends at {size}: it was written anew, begin at 0")
            if after and os.pread(fd, 1, after - 1) != b"\n":
                raise NotReadableSo(
                    "after", f"is {after}, where no line begins; go on from X-Next-Byte of the last answer"
                )
            content = _whole_lines(os.pread(fd, most, after), after, most)
            return Piece(content, after + len(content), size, _name_of(about))

    def whole(self, run: str, file: str) -> Piece:
        """A file that is no list of lines."""
        with self._file(run, file) as (fd, about):
            if about.st_size > MOST_BYTES:
                raise NotReadableSo("file", f"has {about.st_size} bytes, and no more than {MOST_BYTES} are read")
            content = os.pread(fd, MOST_BYTES, 0)
            return Piece(content, len(content), about.st_size, _name_of(about))

    def step(self, run: str, file: str, step: int) -> Piece:
        """The lines of one step, as many as MOST_BYTES hold. Steps must ascend in the file, as `grpo-train` writes them."""
        with self._file(run, file) as (fd, about):
            start = _first_of(fd, step, about.st_size)
            lines, at = [], start
            for line in _lines(fd, start):
                if _step_of(line, at) != step or at + len(line) - start > MOST_BYTES:
                    break
                lines.append(line)
                at += len(line)
            return Piece(b"".join(lines), at, about.st_size, _name_of(about))

    def ends(self, run: str, file: str, each: int) -> tuple[bytes, bytes, int]:
        """Whole lines of the first and of the last `each` bytes, and how many bytes lie between."""
        with self._file(run, file) as (fd, about):
            if about.st_size <= 2 * each:
                content = os.pread(fd, 2 * each, 0)
                return content[: content.rfind(b"\n") + 1], b"", 0
            head, start = os.pread(fd, each, 0), _line_after(fd, about.st_size - each)
            head, tail = head[: head.rfind(b"\n") + 1], os.pread(fd, about.st_size - start, start)
            return head, tail[: tail.rfind(b"\n") + 1], start - len(head)

    def check(self, run: str) -> None:
        """Raises NoSuchFile unless this is a run."""
        if run not in (found["name"] for found in self.runs()):
            raise NoSuchFile(run)

    @contextmanager
    def _file(self, run: str, file: str) -> Iterator[tuple[int, os.stat_result]]:
        if file not in KNOWN or not _is_plain(run):
            raise NoSuchFile(f"{run}/{file}")
        try:
            with _opened(str(self._root)) as root, self._run(root, run) as directory:
                # a pipe would wait for a writer
                fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        except OSError as error:
            raise NoSuchFile(f"{run}/{file}") from error
        try:
            about = os.fstat(fd)
            if not stat.S_ISREG(about.st_mode):
                raise NoSuchFile(f"{run}/{file}")
            yield fd, about
        finally:
            os.close(fd)

    @contextmanager
    def _run(self, root: int, run: str) -> Iterator[int]:
        if run == self._own_name and _files(root):
            yield root
            return
        with _opened(run, root) as directory:
            yield directory


def _is_plain(name: str) -> bool:
    """A name that is shown: one part of a path, not hidden, and one that UTF-8 can carry."""
    return bool(name) and not name.startswith(".") and not {"/", "\0"} & set(name) and name.isprintable()


@contextmanager
def _opened(directory: str, parent: int | None = None) -> Iterator[int]:
    """parent: a directory is looked for in it and no link to one is followed; without it, it is the operator's own path."""
    links = os.O_NOFOLLOW if parent is not None else 0
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | links, dir_fd=parent)
    try:
        yield fd
    finally:
        os.close(fd)


def _files(directory: int) -> dict[str, tuple[int, float]]:
    """Size and time of change of each known file; empty for what is no run."""
    found: dict[str, tuple[int, float]] = {}
    for name in KNOWN:
        try:
            about = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except OSError:
            continue
        if stat.S_ISREG(about.st_mode):
            found[name] = about.st_size, about.st_mtime
    return found


def _name_of(about: os.stat_result) -> str:
    return f"{about.st_dev:x}-{about.st_ino:x}"


def _whole_lines(content: bytes, after: int, most: int) -> bytes:
    end = content.rfind(b"\n") + 1
    if not end and len(content) == most:
        raise NotReadableSo("file", f"has a line of more than {most} bytes at byte {after}; it is not shown")
    return content[:end]


def _lines(fd: int, start: int) -> Iterator[bytes]:
    """Whole lines from byte `start` on; stops at one of more than MOST_BYTES."""
    held, at = b"", start
    while block := os.pread(fd, _BLOCK, at):
        at += len(block)
        *whole, held = (held + block).split(b"\n")
        for line in whole:
            yield line + b"\n"
        if len(held) > MOST_BYTES:
            return


def _step_of(line: bytes, at: int) -> int:
    if (found := _STEP.match(line)) is None:
        raise NotReadableSo("step", f"cannot be looked up: the line at byte {at} does not begin with its step")
    return int(found[1])


def _first_of(fd: int, step: int, size: int) -> int:
    """Where the first line of this step, or of a later one, begins; by bisection of the file."""
    low, high = 0, size  # lines that begin before low are of earlier steps, those from high on are not
    while low < high:
        middle = (low + high) // 2
        start = low if middle == low else _line_after(fd, middle)
        line = next(_lines(fd, start), None) if start < high else None
        if line is not None and _step_of(line, start) < step:
            low = start + len(line)
        else:
            high = middle
    return low


def _line_after(fd: int, offset: int) -> int:
    """The first byte of the first line that begins at or after `offset` (> 0)."""
    at = offset - 1
    while block := os.pread(fd, _BLOCK, at):
        found = block.find(b"\n")
        if found >= 0:
            return at + found + 1
        at += len(block)
    return at
