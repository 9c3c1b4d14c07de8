"""A large JSON body, read in short steps, so that other threads of the process get their turn meanwhile.

A JSON parser written in C keeps Python's lock (the GIL) for as long as it runs: seconds for 60 MB of `[],`, on whatever
thread. Here a body is cut at commas outside strings, each chunk is closed as if it were a document of its own, and the
trees of the chunks are put together. The parser, and with it what counts as JSON, is pydantic-core's for every chunk.

A list of whole numbers that is longer than a chunk comes out as an int64 array: 8 bytes a number and no object each.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
from pydantic_core import from_json, to_json

from grpo_client.errors import ProtocolError
from grpo_client.wire_json.chunks import LIST, Chunk, chunks, too_much

# Bytes that are parsed in a few milliseconds, whatever they hold.
STEP: Final = 2**16
# Entries of lists longer than a chunk that are no whole numbers: each is an object.
MAX_ENTRIES: Final = 2**20
_BLANK: Final = b" \t\r\n"


def read_json(body: bytes, step: int = STEP) -> Any:
    """The value of a JSON document. Raises ProtocolError: 400 for what is none, 413 for one that is dear for its size."""
    if len(body) <= step:
        return _parsed(body, 0)
    return _Tree().grown(chunks(body, step))


def _parsed(text: bytes, start: int) -> Any:
    try:
        return from_json(text)
    except ValueError as error:
        # in a chunk the parser counts from its beginning
        reason = f"{str(error).partition(' at line')[0]} behind byte {start}" if start else str(error)
        raise _malformed(reason) from error


def _malformed(reason: str) -> ProtocolError:
    return ProtocolError(f"the body is not valid JSON ({reason}); is it cut off?", code="malformed_json")


class _Column:
    """A list of whole numbers in the making. home[key]: where it stands."""

    def __init__(self, home: Any, key: Any, first: npt.NDArray[np.int64]) -> None:
        self.home, self.key, self.parts = home, key, [first]

    def settle(self) -> npt.NDArray[np.int64]:
        self.home[self.key] = values = np.concatenate(self.parts)
        return values


class _Tree:
    """The document so far. `open`: its containers that are still open, outermost first; a list may be a _Column."""

    def __init__(self) -> None:
        # The key under which a chunk holds what goes on from the one before, and the entry at its end. Nobody can guess them.
        self._begin, self._end = secrets.token_hex(16), secrets.token_hex(16)
        self._holder: list[Any] = []  # of the whole document
        self._open: list[Any] = []
        self._kinds: list[int] = []
        self._columns: dict[int, _Column] = {}
        self._entries = 0

    def grown(self, parts: Iterator[Chunk]) -> Any:
        for chunk in parts:
            self._add(chunk)
        for column in self._columns.values():
            column.settle()
        return self._holder[0]

    def _add(self, chunk: Chunk) -> None:
        if self._kinds and chunk.text.lstrip(_BLANK)[:1] in b"]},":
            raise _malformed(f"a comma with nothing behind it at byte {chunk.start - 1}")
        if not chunk.last and chunk.text.rstrip(_BLANK)[-1:] in b"[{":
            raise _malformed(f"a comma with nothing before it behind byte {chunk.start}")
        tree = _parsed(self._as_document(chunk), chunk.start)
        path = self._path(tree, chunk.stack)
        if self._kinds:
            self._join(tree)
        else:
            self._holder.append(tree)
        self._open = [*self._open[: chunk.kept], *path[chunk.kept :]]
        self._kinds = chunk.stack
        if len(path) > chunk.kept and self._kinds[-1] == LIST:
            self._make_column(path)

    def _as_document(self, chunk: Chunk) -> bytes:
        """The chunk within the containers that are open around it; a mark ends the innermost that stays open."""
        text: list[bytes] = []
        for depth, kind in enumerate(self._kinds):
            key = b"" if depth == 0 or self._kinds[depth - 1] == LIST else to_json(self._begin) + b":"
            text.append(key + (b"[" if kind == LIST else b"{"))
        text.append(chunk.text)
        if not chunk.last:
            text.append(b"," + to_json(self._end) + (b"" if chunk.stack[-1] == LIST else b":0"))
            text += [b"]" if kind == LIST else b"}" for kind in reversed(chunk.stack)]
        return b"".join(text)

    def _path(self, node: Any, stack: list[int]) -> list[Any]:
        """The containers of a chunk that stay open, outermost first; the mark is taken out of the innermost."""
        path: list[Any] = []
        for kind in stack:
            if not node or not isinstance(node, list if kind == LIST else dict):
                raise _malformed("a key stands twice in one object")
            path.append(cast(Any, node))
            node = _newest(node)
        if path:
            innermost = path[-1]
            last = innermost.pop() if stack[-1] == LIST else innermost.popitem()[0]
            if last != self._end:
                raise _malformed("a key stands twice in one object")
        return path

    def _join(self, node: Any) -> None:
        """Move what a chunk adds to the containers that were open before it into them."""
        for depth, (kind, target) in enumerate(zip(self._kinds, self._open, strict=True)):
            inner = None
            if depth < len(self._kinds) - 1:
                inner = node[0] if kind == LIST else node.pop(self._begin)
            if kind != LIST:
                target.update(node)
            else:
                self._extend(depth, target, node if inner is None else node[1:])
            node = inner

    def _extend(self, depth: int, target: Any, values: list[Any]) -> None:
        if isinstance(target, _Column):
            if (numbers := _whole(values)) is not None:
                target.parts.append(numbers)
                return
            self._open[depth] = plain = target.settle().tolist()
            target.home[target.key] = plain
            del self._columns[id(target)]
            self._count(len(plain))
            target = plain
        self._count(len(values))
        target.extend(values)

    def _make_column(self, path: list[Any]) -> None:
        """The innermost list has just been cut for the first time: from now on an array, if it holds whole numbers alone."""
        if (numbers := _whole(path[-1])) is None:
            return
        if len(path) == 1:
            home, key = self._holder, 0
        else:
            home = self._open[-2]
            key = len(home) - 1 if self._kinds[-2] == LIST else next(reversed(path[-2]))
        column = _Column(home, key, numbers)
        self._open[-1] = column
        self._columns[id(column)] = column

    def _count(self, entries: int) -> None:
        self._entries += entries
        if self._entries > MAX_ENTRIES:
            raise too_much(f"lists with more than {MAX_ENTRIES} entries that are no whole numbers")


def _newest(container: Any) -> Any:
    return container[-1 if isinstance(container, list) else next(reversed(container))]


def _whole(values: list[Any]) -> npt.NDArray[np.int64] | None:
    """Whole numbers as an array; None if something else is among them, or one that 64 bits do not hold."""
    if not set(map(type, values)) <= {int}:
        return None
    try:
        return np.array(values, dtype=np.int64)
    except OverflowError:
        return None
