"""What lies between pieces and their scores: a batch that is ready to run, and what a way of running it offers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from grpo_client.protocol import IntArray
from grpo_numerics.packed import Shape
from torch import Tensor

from .anatomy import Anatomy
from .config import Tier
from .contract import HostedEngine, Piece, Tally
from .head_pass import Questions


@dataclass(frozen=True)
class Prepared:
    """A batch ready to run. targets: (M,) ids of the completion tokens that are asked; tokens: rows that will go through the
    model. positions: (T,) of these rows in their sequences, where each attends to all before it; else None. parts: with the
    head of each piece, unless all have the model's own. engines: whose each piece is, unless all are of the engine that
    computes them."""

    pieces: Sequence[Piece]
    targets: IntArray
    tokens: int
    plan: Any = None
    positions: npt.NDArray[np.int64] | None = None
    parts: Sequence[Anatomy] = ()
    engines: Sequence[HostedEngine] | None = None
    questions: Questions = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "questions", Questions.of(self.pieces, self.targets, self.parts))


class Laid(NamedTuple):
    """Pieces laid out, as `Prepared` has them."""

    targets: IntArray
    tokens: int
    plan: Any
    positions: npt.NDArray[np.int64] | None = None


class Runs(Protocol):
    """`rows`: (M, D) hidden states, one per completion token that is asked, in the pieces' order."""

    def prepare(self, pieces: Sequence[Piece]) -> Prepared: ...

    def rows(self, batch: Prepared) -> Tensor: ...


class Forward(Runs, Protocol):
    """A way of computing. `lay` and `run` are what `prepare` and `rows` do, for who prepares batches of a kind of its own.
    shapes: of attention's calls, once it has run; none where attention is the model's own."""

    tier: Tier

    @property
    def shapes(self) -> Sequence[Shape]: ...

    def tally(self) -> Tally: ...

    def lay(self, pieces: Sequence[Piece]) -> Laid: ...

    def run(self, plan: Any) -> Tensor: ...
