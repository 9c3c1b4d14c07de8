"""The same engine with attention by torch alone, segment by segment: what a GPU without the tree kernel's reach runs."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from grpo_numerics.packed import attention

_CHOICES = ("on_triton", "on_flash")


@contextmanager
def without_the_kernel() -> Generator[None]:
    """Inside, attention takes neither the tree kernel nor flash attention over gathered keys."""
    module: Any = attention
    before = {name: getattr(module, name) for name in _CHOICES if hasattr(module, name)}
    try:
        for name in before:
            setattr(module, name, lambda *_: False)
        yield
    finally:
        for name, choice in before.items():
            setattr(module, name, choice)
