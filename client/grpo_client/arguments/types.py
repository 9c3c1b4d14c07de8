"""The types of what callers hand over, for editors and type checkers; `readers` and `id_lists` read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class SupportsArray(Protocol):
    """Whatever NumPy can read: arrays, and tensors of any framework."""

    def __array__(self, *args: Any, **kwargs: Any) -> Any: ...


# Token ids as callers have them.
Ids = Sequence[int] | SupportsArray
# Lists of ids, one per prompt; completions[k][g] of them, or completions[k] where each prompt has one.
Prompts = Sequence[Ids] | SupportsArray
Completions = Sequence[Sequence[Ids]] | Sequence[Ids] | SupportsArray
# Per group and completion, (C,) zeros and ones: where a token is asked.
CompletionMask = (
    Sequence[Sequence[Sequence[int] | SupportsArray]] | Sequence[Sequence[int] | SupportsArray] | SupportsArray
)
# Per group and completion, (C, k) ids to score at each of the C positions.
WantedIds = Sequence[Sequence[Sequence[Ids] | SupportsArray]] | Sequence[Sequence[Ids] | SupportsArray]
