"""What a source of questions is, wherever it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reasoning_gym.dataset import ProceduralDataset

from grpo_training.tasks.rows import Entry


@dataclass(frozen=True, slots=True)
class Source:
    """entries: what is asked. places: where each stands, for errors. fingerprint: changes when the entries do.

    dataset: reasoning-gym's, whose scorer judges; None for what is read.
    """

    entries: Sequence[Entry]
    places: Sequence[str]
    fingerprint: str
    dataset: ProceduralDataset | None = None


class Numbered(Sequence[str]):
    def __init__(self, form: str, length: int) -> None:
        self._form, self._length = form, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        return self._form.format(range(self._length)[index])  # IndexError ends an iteration
