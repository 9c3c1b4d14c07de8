"""Log-probs straight from hidden states: the LM head and the normalizer in one pass over vocabulary tiles.

Never more than a tile of the (rows, vocabulary) logits exists, so that memory does not grow with either. How a tile
comes about is `tiles`' business, the running sums are `online`'s, what is told of them `figures`', the gradient is
`autograd`'s. On a GPU the Triton kernels of `triton` do the same where they can (`choice`).

Two decisions hold the figures of a row together:

- The target's logit is computed first, by itself (in float64, rounded once), and put into the tile in place of the
  GEMM's own. Then rank, top-k and asked ids compare against it in the same single pass, and agree with it: a target
  that is the best token has rank 0 and `logprobs == top_logprobs[:, 0]`, to the bit.
- The running sums are over all *other* tokens, and log p = -log1p(e^(their log-sum-exp - target)). A sum over all
  tokens rounds to 1 for a sure target and its log-prob to 0; this one keeps its relative precision, and so does the
  gradient that is made of it.

A row whose logits hold NaN or +inf, or nothing but -inf, has no distribution: its figures are NaN (rank -1) and those of
the other rows are untouched. A target with logit -inf has log-prob -inf.
"""

from __future__ import annotations

import math
from collections.abc import Set
from typing import Any

import torch
from torch import Tensor

from ..transforms import Normalizer, check_targets
from .best import best_tokens
from .choice import on_triton
from .figures import WANTS, Chosen, HeadScores, Want, figures, joined
from .online import OnlineLogSumExp
from .shifted import ShiftedTiles
from .spec import HeadSpec, Tile
from .tiles import LogitTiles, RowBlock, padded, put_where_inside


@torch.no_grad()
def score_rows(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    spec: HeadSpec | None = None,
    temperature: float | Tensor = 1.0,
    normalizer: Normalizer = "softmax",
    want: Set[Want] = frozenset(),
    top_k: int = 0,
    token_ids: Tensor | None = None,
    tile: Tile | tuple[int, int] | None = None,
    shifted: bool = False,
    checked: bool = False,
) -> HeadScores:
    """Score one target a row, without gradient.

    hidden: (R, D) last hidden states, any float dtype. weight: (V, D) of the LM head. targets: (R,) integer ids.
    spec: bias, logit scale, soft-cap. temperature: a number or (R,), > 0; divides the logits. want: further figures.
    top_k: how many best tokens a row. token_ids: (R, j) further ids to score, -1 for none. tile: (rows, vocabulary) held at
    a time. shifted: where neither rank nor best tokens are asked, a CPU may multiply bf16 rows with a bf16 weight in bf16, for
    speed; the error is in the module `shifted`. checked: ids and temperatures are known to be possible, and on a GPU nothing is
    read, and waited for, to find out.

    Logits are computed in fp32 or better from half weights too, unless `shifted`. Raises ValueError for what cannot be
    computed.
    """
    spec = spec or HeadSpec()
    if unknown := want - WANTS:
        raise ValueError(f"want knows {', '.join(sorted(WANTS))}, got {sorted(unknown)}")
    if "tail" in want and not top_k and token_ids is None:
        raise ValueError("tail is the mass outside top_k or token_ids: ask for one of them, too")
    _check_chosen(top_k, token_ids, len(hidden), len(weight), checked)
    how: Any = {
        "spec": spec, "temperature": temperature, "normalizer": normalizer, "tile": tile, "checked": checked,
    }  # fmt: skip
    if on_triton(hidden, weight):
        from .triton import TritonTiles, block_scores

        kernels = TritonTiles(hidden, weight, targets, **how)
        return joined([block_scores(kernels, block, want, top_k, token_ids) for block in kernels.blocks])
    shifted = shifted and not top_k and "rank" not in want and ShiftedTiles.take(hidden, weight)
    make = ShiftedTiles if shifted else LogitTiles
    tiles = make(hidden, weight, targets, **how)
    tallies = [_Tally(tiles, block, want, top_k, token_ids) for block in tiles.blocks]
    for columns in tiles.columns():
        weight_rows = tiles.weight_rows(columns)
        for tally in tallies:
            tally.take(tiles.logits(tally.block, columns, weight_rows), columns)
    return joined([tally.scores() for tally in tallies])


def _check_chosen(top_k: int, token_ids: Tensor | None, rows: int, vocab: int, checked: bool) -> None:
    """ValueError for more tokens than there are, or ids outside the vocabulary."""
    if not 0 <= top_k <= vocab:
        raise ValueError(f"top_k must lie in [0, {vocab}], got {top_k}")
    if token_ids is not None:
        if token_ids.ndim != 2:
            raise ValueError(f"token_ids must be (R, j), got {tuple(token_ids.shape)}")
        if not checked:
            check_targets(token_ids, vocab, torch.Size((rows, token_ids.shape[1])), "token_ids", lowest=-1)


class _Tally:
    """The running figures of one row block."""

    def __init__(
        self, tiles: LogitTiles, block: RowBlock, want: Set[str], top_k: int, token_ids: Tensor | None
    ) -> None:
        self.block = block
        self._tiles = tiles
        self._want = want
        self._target = tiles.target_logits(block)  # (M, 1)
        device = self._target.device
        self._others = OnlineLogSumExp(block.height, dtype=tiles.dtype, device=device, entropy="entropy" in want)
        self._above = torch.zeros(block.height, dtype=tiles.dtype, device=device) if "rank" in want else None
        self._top = best_tokens(block.height, top_k, dtype=tiles.dtype, device=device) if top_k else None
        self._ids = None if token_ids is None else padded(token_ids[block.start : block.stop].long(), block.height)
        self._id_logits = None if self._ids is None else torch.full_like(self._ids, -math.inf, dtype=tiles.dtype)
        rest = OnlineLogSumExp(block.height, dtype=tiles.dtype, device=device) if "tail" in want else None
        self._top_rest = rest if top_k else None
        self._ids_rest = (
            None
            if self._ids is None or rest is None
            else OnlineLogSumExp(block.height, dtype=tiles.dtype, device=device)
        )

    def take(self, z: Tensor, columns: slice) -> None:
        """Take in the (M, v) logits of these tokens; z is overwritten."""
        local = self.block.targets[:, None] - columns.start
        put_where_inside(z, local, self._target)
        if self._above is not None:
            # 0.0 and 1.0 rather than booleans: compared and summed at a third of the time
            self._above += torch.gt(z, self._target, out=self._tiles.scratch("spare", *z.shape)).sum(-1)
        if self._top is not None:
            before = self._top.logits if self._top_rest is not None else None
            self._top.take(z, columns.start)
            if self._top_rest is not None and before is not None:
                # those of earlier tiles stay in front of later ones, best first: what is left of them is their beginning
                ids = self._top.ids
                kept = (ids < columns.start).sum(-1, keepdim=True)
                dropped = torch.where(torch.arange(before.shape[1], device=z.device) >= kept, before, -math.inf)
                self._top_rest.consume(_without(z, ids - columns.start, dropped))
        if self._ids is not None and self._id_logits is not None:
            local_ids = self._ids - columns.start
            found = z.gather(1, local_ids.clamp(0, z.shape[1] - 1))
            here = (self._ids >= 0) & (local_ids >= 0) & (local_ids < z.shape[1])
            self._id_logits = torch.where(here, found, self._id_logits)
            if self._ids_rest is not None:
                self._ids_rest.consume(_without(z, local_ids))
        put_where_inside(z, local, -math.inf)
        spare = self._tiles.scratch("spare", *z.shape) if self._others.weighted is not None else None
        self._others.consume(z, spare)

    def scores(self) -> HeadScores:
        """The block's figures, without the padding."""
        chosen = Chosen(
            top_ids=None if self._top is None else self._top.ids,
            top=None if self._top is None else self._top.logits,
            top_rest=self._top_rest,
            ids=self._ids,
            asked=self._id_logits,
            ids_rest=self._ids_rest,
        )
        target, targets = self._target[:, 0], self.block.targets
        return figures(target, targets, self._others, self._above, self._want, chosen).first(self.block.rows)


def _without(z: Tensor, local_ids: Tensor, further: Tensor | None = None) -> Tensor:
    """A copy of z (M, v) with -inf in these columns (M, n), those outside z being none; `further` (M, m) columns behind it."""
    rows, width = z.shape
    copy = z.new_empty(rows, width + 1 + (0 if further is None else further.shape[1]))
    copy[:, 1 : width + 1] = z
    if further is not None:
        copy[:, width + 1 :] = further
    outside = (local_ids < 0) | (local_ids >= width)
    return copy.scatter_(1, (local_ids + 1).masked_fill(outside, 0), -math.inf)[:, 1:]
