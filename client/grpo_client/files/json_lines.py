"""Files of one JSON object a line, as people and programs write them: from a disk or a pipe, plain or gzip, by any editor.

A line ends at a newline and nowhere else: JSON allows U+2028, U+0085 and their like inside a string, and `str.splitlines`
would cut there. A byte order mark, a carriage return before the newline, blank lines and a missing last newline are let pass.
"""

from __future__ import annotations

import gzip
import io
import stat
import sys
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, cast

PIPE: Final = Path("-")  # standard input or output, as commands know it
_BOM: Final = b"\xef\xbb\xbf"
_GZIP: Final = b"\x1f\x8b"
# What else a file may begin with, and what makes it one that can be read.
_REFUSED: Final = {
    b"\x28\xb5\x2f\xfd": "zstd; pipe it: zstd -dc FILE | ... --input -",
    b"\xfd7zXZ": "xz; pipe it: xz -dc FILE | ... --input -",
    b"BZh": "bzip2; pipe it: bzip2 -dc FILE | ... --input -",
    b"\xff\xfe": "UTF-16; save it as UTF-8",
    b"\xfe\xff": "UTF-16; save it as UTF-8",
}
# Legal in JSON, and taken for the end of a line by much that reads lines: NEL, LINE and PARAGRAPH SEPARATOR.
_ESCAPED: Final = {"\x85".encode(): b"\\u0085", "\u2028".encode(): b"\\u2028", "\u2029".encode(): b"\\u2029"}


class NotReadable(ValueError):
    """The file cannot be read as lines of JSON; the message names the file and the remedy."""


def is_regular(path: Path) -> bool:
    """Whether this is a file on a disk, which can be read twice and resumed: not a pipe, a terminal or a device."""
    return path != PIPE and path.exists() and stat.S_ISREG(path.stat().st_mode)


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that hold something, numbered from 1 as an editor numbers them. Raises NotReadable, OSError."""
    number = 0
    with _opened(path) as file:
        try:
            for number, line in enumerate(file, start=1):
                line = line.removeprefix(_BOM) if number == 1 else line
                if line.strip():
                    yield number, line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise NotReadable(f"{path}: the gzip data break off after line {number} ({error})") from error


def one_line(record: bytes) -> bytes:
    """A JSON object as a line that every reader takes for one."""
    for character, escape in _ESCAPED.items():
        record = record.replace(character, escape)
    return record + b"\n"


@contextmanager
def _opened(path: Path) -> Generator[IO[bytes]]:
    raw: Any = sys.stdin.buffer if path == PIPE else path.open("rb")
    file = raw if hasattr(raw, "peek") else io.BufferedReader(raw)
    try:
        head = bytes(file.peek(8))
        if what := next((what for mark, what in _REFUSED.items() if head.startswith(mark)), None):
            raise NotReadable(f"{path} is {what}")
        yield cast(IO[bytes], gzip.GzipFile(fileobj=file)) if head.startswith(_GZIP) else file
    finally:
        if path != PIPE:
            file.close()
