"""Where a JSON document can be cut: at commas outside strings, with the containers that are open there.

Looks at brackets, quotes, backslashes and commas alone, in numpy, which gives way to other threads; whether the document is
JSON is not its business. What it refuses is a document that is dear for its size: too many lists, objects and strings, or
a string too long to be text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from grpo_client.errors import ProtocolError

# Of one document. 60 MB of "[]," would be 20 million lists, and each time the garbage collector looks at them all, nothing
# else runs. Enough for 65,536 groups of one completion, as ids or as text.
MAX_CONTAINERS: Final = 2**18 + 2**16
MAX_STRINGS: Final = 2**19
# Bytes without a comma outside strings: one string, and no text that a model could take.
MAX_UNCUT: Final = 2**24

LIST, OBJECT = 0, 1
_QUOTE, _BACKSLASH, _COMMA, _BRACKET = 1, 2, 4, 8
_KIND: Final = np.zeros(256, np.uint8)
for _characters, _kind in (('"', _QUOTE), ("\\", _BACKSLASH), (",", _COMMA), ("[]{}", _BRACKET)):
    _KIND[[ord(c) for c in _characters]] = _kind

Positions = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Chunk:
    """text: the bytes from `start` up to the next cut, the comma itself left out. stack: the containers open there, each
    LIST or OBJECT, outermost first. kept: how many of those were open at the start of the chunk already. last: no cut follows.
    """

    text: bytes
    start: int
    stack: list[int]
    kept: int
    last: bool


def chunks(body: bytes, step: int) -> Iterator[Chunk]:
    """The document in chunks of about `step` bytes, more where there is no comma. Raises ProtocolError (413)."""
    scan = _Scan()
    start, stack = 0, list[int]()
    opened: list[npt.NDArray[np.uint8]] = []  # brackets since `start`
    for begin in range(0, len(body), step):
        block = np.frombuffer(body, np.uint8, min(step, len(body) - begin), begin)
        brackets, commas = scan.read(block)
        if begin + len(block) == len(body):
            break
        if not len(commas):
            opened.append(block[brackets])
            if begin + len(block) - start > MAX_UNCUT:
                raise too_much(f"{MAX_UNCUT} bytes without a comma to cut at")
            continue
        cut = int(commas[-1])
        before = np.searchsorted(brackets, cut)
        stack, kept = _after(stack, np.concatenate([*opened, block[brackets[:before]]]))
        if not stack:
            raise ProtocolError(
                f"the body is not valid JSON (it goes on behind its end, at byte {begin + cut})", code="malformed_json"
            )
        yield Chunk(body[start : begin + cut], start, stack, kept, last=False)
        start, opened = begin + cut + 1, [block[brackets[before:]]]
    yield Chunk(body[start:], start, [], 0, last=True)


class _Scan:
    """What carries over from block to block: whether a string is open, whether the next character is escaped, the count."""

    def __init__(self) -> None:
        self._in_string = False
        self._escaped = False
        self._containers = self._strings = 0.0

    def read(self, block: npt.NDArray[np.uint8]) -> tuple[Positions, Positions]:
        """Positions of brackets and of commas outside strings."""
        kinds = _KIND[block]
        quotes = self._quotes(kinds)
        brackets, commas = (self._outside(np.flatnonzero(kinds == kind), quotes) for kind in (_BRACKET, _COMMA))
        self._in_string ^= bool(len(quotes) % 2)
        self._containers += len(brackets) / 2
        self._strings += len(quotes) / 2
        if self._containers > MAX_CONTAINERS:
            raise too_much(f"more than {MAX_CONTAINERS} lists and objects")
        if self._strings > MAX_STRINGS:
            raise too_much(f"more than {MAX_STRINGS} strings")
        return brackets, commas

    def _outside(self, at: Positions, quotes: Positions) -> Positions:
        """Those of the positions that are in no string."""
        if not len(quotes):
            return at[:0] if self._in_string else at
        return at[(np.searchsorted(quotes, at) + self._in_string) % 2 == 0]

    def _quotes(self, kinds: npt.NDArray[np.uint8]) -> Positions:
        """Positions of quotes that begin or end a string: those that no backslash escapes."""
        quotes, backslashes = (np.flatnonzero(kinds == kind) for kind in (_QUOTE, _BACKSLASH))
        if not len(backslashes) and not self._escaped:
            return quotes
        escaped = np.zeros(len(kinds) + 1, dtype=np.bool_)
        escaped[0] = self._escaped
        if len(backslashes):
            # in a run of backslashes every other one escapes what follows, from the first that is not escaped itself
            begins = np.flatnonzero(np.diff(backslashes, prepend=-2) != 1)
            first = backslashes[begins]
            lengths = np.diff(begins, append=len(backslashes))
            place = backslashes - np.repeat(first, lengths)
            shifted = np.repeat((first == 0) & self._escaped, lengths)
            escaped[backslashes[(place + shifted) % 2 == 0] + 1] = True
        self._escaped = bool(escaped[-1])
        return quotes[~escaped[quotes]]


def _after(stack: list[int], brackets: npt.NDArray[np.uint8]) -> tuple[list[int], int]:
    """The stack behind these brackets, and how much of the given one is in it. Which bracket closes which is for the parser."""
    if not len(brackets):
        return stack, len(stack)
    opens = (brackets == ord("[")) | (brackets == ord("{"))
    depth = np.cumsum(np.where(opens, 1, -1))
    kept = max(len(stack) + min(int(depth.min()), 0), 0)
    lowest_after = np.minimum.accumulate(depth[::-1])[::-1]
    still_open = brackets[opens & (lowest_after >= depth)]
    return [*stack[:kept], *(OBJECT if b == ord("{") else LIST for b in still_open.tolist())], kept


def too_much(what: str) -> ProtocolError:
    return ProtocolError(
        f"the body holds {what}; send less at once, or ids as safetensors", code="body_too_complex", status=413
    )
