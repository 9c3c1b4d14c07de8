"""Bytes that come in chunks and are taken out whole, in memory of their own.

malloc keeps what was freed for the next forward (`grpo_numerics.heap`) and is left with holes where buffers grew. A large
body lies in pages from the kernel in place of that: it never moves while it grows, and its pages go back when it is dropped.
"""

from __future__ import annotations

import mmap
import sys
from typing import Any

# Up to here a plain buffer costs less than pages do.
SMALL_BYTES = 2**17
BLOCK_BYTES = 2**20
# Private: not counted as shared memory, of which containers have little.
_PRIVATE: dict[str, Any] = {} if sys.platform == "win32" else {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}


class ByteStore:
    """size: bytes held."""

    def __init__(self) -> None:
        self._small = bytearray()
        self._blocks: list[mmap.mmap] = []
        self._room = 0  # in the last block
        self.size = 0

    def add(self, data: bytes) -> None:
        self.size += len(data)
        if not self._blocks and len(self._small) + len(data) <= SMALL_BYTES:
            self._small += data
            return
        rest = memoryview(data)
        while rest:
            if not self._room:
                self._blocks.append(mmap.mmap(-1, BLOCK_BYTES, **_PRIVATE))
                self._room = BLOCK_BYTES
            part = rest[: self._room]
            self._blocks[-1].write(part)
            self._room -= len(part)
            rest = rest[len(part) :]

    def take(self) -> bytes:
        """All of it in one piece; the store is empty then."""
        views = [memoryview(block) for block in self._blocks]
        if views:
            views[-1] = views[-1][: BLOCK_BYTES - self._room]
        whole = b"".join([self._small, *views])
        for view in views:
            view.release()
        self.drop()
        return whole

    def drop(self) -> None:
        for block in self._blocks:
            block.close()
        self._small, self._blocks, self._room, self.size = bytearray(), [], 0, 0
