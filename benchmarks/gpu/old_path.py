"""The same engine with attention by torch alone, segment by segment: what a GPU without Triton runs."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def without_the_kernel() -> Generator[None]:
    """Inside, no attention goes to the tree kernel."""
    yield
