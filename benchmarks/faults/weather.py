"""Kinds of bad weather on a connection."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from .proxy import Stream


@dataclass(frozen=True)
class Drops:
    """Connections end in the middle of whatever they were saying."""

    chance: float = 0.2

    async def passing(self, data: bytes, stream: Stream, rng: random.Random) -> tuple[bytes, bool]:
        stream.body_from(data)
        return (b"", True) if rng.random() < self.chance else (data, False)


@dataclass(frozen=True)
class Delays:
    """Bytes come late, and a few at first."""

    seconds: float = 0.3

    async def passing(self, data: bytes, stream: Stream, rng: random.Random) -> tuple[bytes, bool]:
        stream.body_from(data)
        await asyncio.sleep(rng.uniform(0, self.seconds))
        return data, False


@dataclass(frozen=True)
class Truncates:
    """A part of what was said arrives, and then the connection ends in good order."""

    chance: float = 0.3

    async def passing(self, data: bytes, stream: Stream, rng: random.Random) -> tuple[bytes, bool]:
        stream.body_from(data)
        return (data[: rng.randrange(len(data))], True) if rng.random() < self.chance else (data, False)


@dataclass(frozen=True)
class Flips:
    """One bit flips, in either direction. heads: in heads as well as in bodies."""

    chance: float = 0.3
    heads: bool = False

    async def passing(self, data: bytes, stream: Stream, rng: random.Random) -> tuple[bytes, bool]:
        first = stream.body_from(data)
        first = 0 if self.heads else first
        if first >= len(data) or rng.random() >= self.chance:
            return data, False
        changed = bytearray(data)
        changed[rng.randrange(first, len(data))] ^= 1 << rng.randrange(8)
        return bytes(changed), False
