"""The tables of one batch for whatever its layers ask: made ahead where that is known, and sent to each device once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...transfer import Parcel
from .schedule import KeyTables, QueryTables
from .segments import Tree

_Arrays: TypeAlias = "tuple[npt.NDArray[np.int32], ...]"


class Queries(NamedTuple):
    """What programs ask for that own queries: query heads a key head, pairs of a program, keys of a block."""

    repeats: int
    block_m: int
    block_n: int

    def arrays(self, tree: Tree) -> _Arrays:
        tables = QueryTables.of(tree, self.repeats, self.block_m, self.block_n)
        return tables.tiles, tables.items, tables.joints


class Keys(NamedTuple):
    """What programs ask for that own keys: how many of them, and whether a window may skip rows."""

    block_n: int
    windowed: bool

    def arrays(self, tree: Tree) -> _Arrays:
        tables = KeyTables.of(tree, self.block_n, windowed=self.windowed)
        return tables.tiles, tables.runs


Ask: TypeAlias = "Queries | Keys"


class TreePlan:
    """`ahead` on any thread; then `tables` on the one that computes."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._parcels: dict[Ask, Parcel[tuple[Ask, int]]] = {}

    @property
    def asked(self) -> frozenset[Ask]:
        """All that has been asked for: what the next batch of the same model will ask, too."""
        return frozenset(self._parcels)

    def ahead(self, asks: Iterable[Ask]) -> None:
        """Make these tables; they go to a device together."""
        new = [ask for ask in asks if ask not in self._parcels]
        parcel = Parcel({(ask, i): array for ask in new for i, array in enumerate(ask.arrays(self._tree))})
        self._parcels.update(dict.fromkeys(new, parcel))

    def tables(self, ask: Ask, device: torch.device) -> list[Tensor]:
        """In the order of `Queries.arrays` or `Keys.arrays`."""
        if ask not in self._parcels:
            self.ahead([ask])
        there = self._parcels[ask].on(device)
        return [there[ask, i] for i in range(2 if isinstance(ask, Keys) else 3)]
