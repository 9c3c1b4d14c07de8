"""Which of several replicas a prompt belongs to: consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam 2018,
arXiv:1608.01350). Shared by the client's balancer and by the router of a Ray cluster; it sends nothing.

A prompt that comes again finds the replica that has its results, and requests of one prompt that come together are computed
together. Every caller that knows the same names agrees, in any process. When a replica is gone its prompts go to the next ones
on the ring, and all others stay.
"""

from __future__ import annotations

import bisect
import json
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

# The header that carries `prompt_key`, as 16 hexadecimal digits, for routers that do not read bodies.
PROMPT_KEY = "X-Prompt-Key"
# Places of each member on the ring: shares of the ring then differ by about a tenth from one member to the next.
POINTS = 128
# No member is given more than this times the mean of what is in flight: above 1, or every request would be spread; the larger,
# the more prompts stay where they are warm, and the longer the busiest member.
LOAD_FACTOR = 1.25

_WORD = 8  # bytes of a place
_WORDS = 8  # of one digest


class Ring:
    """members: their names, which place them; the order does not matter. Fixed once made."""

    def __init__(self, members: Iterable[str], points: int = POINTS) -> None:
        self.members = tuple(dict.fromkeys(members))
        places = sorted((place, n) for n, name in enumerate(self.members) for place in _places(name, points))
        self._places = array("Q", (place for place, _ in places))
        self._owners = array("L", (n for _, n in places))

    def clockwise(self, key: int) -> Iterator[str]:
        """Every member once, the one that `key` belongs to first. key: 64 bits."""
        start = bisect.bisect_right(self._places, key)
        seen: set[int] = set()
        for at in range(len(self._owners)):
            owner = self._owners[(start + at) % len(self._owners)]
            if owner not in seen:
                seen.add(owner)
                yield self.members[owner]
                if len(seen) == len(self.members):
                    return

    def place(self, key: int, loads: Mapping[str, int], factor: float = LOAD_FACTOR) -> str:
        """Who gets the next request with this key.

        loads: what each member has in flight, of those that may be asked; at least one of the members. factor: 1 or more. The
        first member on the way round that has less than factor * (all in flight + 1) / members, rounded up.
        """
        bound = math.ceil(factor * (sum(loads.values()) + 1) / len(loads))
        return next(name for name in self.clockwise(key) if loads.get(name, bound) < bound)


def _places(name: str, points: int) -> Iterator[int]:
    for block in range(-(-points // _WORDS)):
        digest = blake2b(f"{block}:{name}".encode(), digest_size=_WORD * _WORDS).digest()
        for at in range(min(_WORDS, points - block * _WORDS)):
            yield int.from_bytes(digest[at * _WORD : (at + 1) * _WORD])


def prompt_key(prompt: Any) -> int:
    """64 bits of a prompt: of (P,) ids, of a string, or of chat messages. The same in every process and on every machine."""
    if isinstance(prompt, str):
        data = prompt.encode("utf-8", "surrogatepass")
    elif isinstance(prompt, np.ndarray):
        data = np.ascontiguousarray(prompt, dtype="<i4").tobytes()
    else:
        messages: Sequence[Any] = [dict(message) for message in prompt]
        data = json.dumps(messages, sort_keys=True, default=str).encode()
    return int.from_bytes(blake2b(data, digest_size=_WORD).digest())


def read_key(text: str | None) -> int | None:
    """What `PROMPT_KEY` holds; None for nothing, and for what is no key."""
    try:
        return None if text is None or len(text) != 2 * _WORD else int(text, 16)
    except ValueError:
        return None


def write_key(key: int) -> str:
    """As the header carries it."""
    return f"{key:0{2 * _WORD}x}"
