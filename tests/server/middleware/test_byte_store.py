"""What goes in comes out, in whatever chunks, and the store is empty then."""

from __future__ import annotations

import random

import pytest
from grpo_server.middleware.bodies.store import BLOCK_BYTES, SMALL_BYTES, ByteStore

EDGES = [0, 1, SMALL_BYTES - 1, SMALL_BYTES, SMALL_BYTES + 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1]


@pytest.mark.parametrize("size", [*EDGES, SMALL_BYTES + BLOCK_BYTES, 3 * BLOCK_BYTES, 3 * BLOCK_BYTES + 7])
@pytest.mark.parametrize("chunk", [1000, SMALL_BYTES, 2 * BLOCK_BYTES])
def test_chunks_come_out_whole(size: int, chunk: int) -> None:
    data = random.Random(size).randbytes(size)
    store = ByteStore()
    for _ in range(2):
        for start in range(0, size, chunk):
            store.add(data[start : start + chunk])
            store.add(b"")
        assert store.size == size
        assert store.take() == data
        assert store.size == 0
        assert store.take() == b""


def test_what_is_dropped_is_gone() -> None:
    store = ByteStore()
    store.add(b"x" * 3 * BLOCK_BYTES)
    store.drop()
    store.add(b"y")
    assert store.take() == b"y"
