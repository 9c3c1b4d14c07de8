"""Log-probs straight from hidden states: the LM head and the normaliser in one pass over vocabulary tiles.

Never more than a tile of the (rows, vocabulary) logits exists, so that memory does not grow with either. How a tile
comes about is `tiles`' business, the running sums are `online`'s, the gradient is `autograd`'s. On a GPU the Triton
kernels of `triton` do the same where they can (`choice`); top-k and asked ids are always taken here.

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
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor

from ..stable import entropy_from_odds, logprob_from_odds
from ..transforms import Normalizer, check_targets
from .choice import on_triton
from .online import OnlineLogSumExp
from .spec import HeadSpec, Tile
from .tiles import LogitTiles, RowBlock, padded

if TYPE_CHECKING:
    from .triton import TritonTiles

Want = Literal["entropy", "logsumexp", "rank"]


@dataclass(frozen=True, slots=True)
class HeadScores:
    """Figures of R rows; floats are fp32 (fp64 for fp64 input), nats. What was not asked for is None.

    logprobs: (R,) of the targets. entropy, logsumexp: (R,), of the transformed logits. rank: (R,) int32, tokens with
    a strictly larger logit than the target. top_ids (R, k) int32 and top_logprobs (R, k): the k best, best first.
    token_logprobs: (R, j) of the asked ids.
    """

    logprobs: Tensor
    entropy: Tensor | None = None
    logsumexp: Tensor | None = None
    rank: Tensor | None = None
    top_ids: Tensor | None = None
    top_logprobs: Tensor | None = None
    token_logprobs: Tensor | None = None

    def first(self, rows: int) -> HeadScores:
        """The figures of the first rows: those that are no padding."""
        figures = (getattr(self, field.name) for field in fields(self))
        return HeadScores(*(cast(Any, None if figure is None else figure[:rows]) for figure in figures))


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
) -> HeadScores:
    """Score one target a row, without gradient.

    hidden: (R, D) last hidden states, any float dtype. weight: (V, D) of the LM head. targets: (R,) integer ids.
    spec: bias, logit scale, soft-cap. temperature: a number or (R,), > 0; divides the logits. want: further figures.
    top_k: how many best tokens a row. token_ids: (R, j) further ids to score. tile: (rows, vocabulary) held at a time.

    Logits are computed in fp32 or better from half weights too. Raises ValueError for what cannot be computed.
    """
    spec = spec or HeadSpec()
    if unknown := want - {"entropy", "logsumexp", "rank"}:
        raise ValueError(f"want knows entropy, logsumexp and rank, got {sorted(unknown)}")
    if not top_k and token_ids is None and on_triton(hidden, weight):
        from .triton import TritonTiles

        kernels = TritonTiles(
            hidden, weight, targets, spec=spec, temperature=temperature, normalizer=normalizer, tile=tile
        )
        return _joined([_by_kernels(kernels, block, want) for block in kernels.blocks])
    tiles = LogitTiles(hidden, weight, targets, spec=spec, temperature=temperature, normalizer=normalizer, tile=tile)
    if not 0 <= top_k <= tiles.vocab:
        raise ValueError(f"top_k must lie in [0, {tiles.vocab}], got {top_k}")
    if token_ids is not None:
        if token_ids.ndim != 2:
            raise ValueError(f"token_ids must be (R, j), got {tuple(token_ids.shape)}")
        check_targets(token_ids, tiles.vocab, torch.Size((len(hidden), token_ids.shape[1])), "token_ids")
    tallies = [_Tally(tiles, block, want, top_k, token_ids) for block in tiles.blocks]
    for columns in tiles.columns():
        weight_rows = tiles.weight_rows(columns)
        for tally in tallies:
            tally.take(tiles.logits(tally.block, columns, weight_rows), columns)
    return _joined([tally.scores() for tally in tallies])


def _joined(parts: list[HeadScores]) -> HeadScores:
    """The rows of all parts, in order."""
    if len(parts) == 1:
        return parts[0]
    figures = [[getattr(part, field.name) for part in parts] for field in fields(HeadScores)]
    return HeadScores(*(cast(Any, None if of[0] is None else torch.cat(of)) for of in figures))


def _by_kernels(tiles: TritonTiles, block: RowBlock, want: Set[str]) -> HeadScores:
    """One row block, its sums made by the kernels."""
    target = tiles.target_logits(block)[:, 0]
    others, above = tiles.sums_of_others(block, target, entropy="entropy" in want, rank="rank" in want)
    return _figures(target, others, above, want)[0].first(block.rows)


def _figures(
    target: Tensor, others: OnlineLogSumExp, above: Tensor | None, want: Set[str]
) -> tuple[HeadScores, OnlineLogSumExp]:
    """Figures of M rows, and the sums over their whole vocabulary.

    target: (M,) the targets' logits. others: the sums over all other tokens. above: (M,) how many of them are larger.
    """
    rest = others.logsumexp()
    logprobs = logprob_from_odds(target, rest)
    lost = logprobs.isnan()
    everything = OnlineLogSumExp(len(target), dtype=target.dtype, device=target.device)
    everything.merge(others)
    everything.consume(target[:, None].clone())
    scores = HeadScores(
        logprobs,
        entropy=None if others.weighted is None else entropy_from_odds(target, rest, others.entropy()),
        logsumexp=everything.logsumexp().masked_fill(lost, math.nan) if "logsumexp" in want else None,
        rank=None if above is None else above.int().masked_fill(lost, -1),
    )
    return scores, everything


class _Tally:
    """The running figures of one row block."""

    def __init__(
        self, tiles: LogitTiles, block: RowBlock, want: Set[str], top_k: int, token_ids: Tensor | None
    ) -> None:
        self.block = block
        self._tiles = tiles
        self._want = want
        self._top_k = top_k
        self._target = tiles.target_logits(block)  # (M, 1)
        device = self._target.device
        self._others = OnlineLogSumExp(block.height, dtype=tiles.dtype, device=device, entropy="entropy" in want)
        self._above = torch.zeros(block.height, dtype=tiles.dtype, device=device) if "rank" in want else None
        self._top = torch.empty(block.height, 0, dtype=tiles.dtype, device=device)
        self._top_ids = torch.empty(block.height, 0, dtype=torch.int64, device=device)
        self._ids = None if token_ids is None else padded(token_ids[block.start : block.stop].long(), block.height)
        self._id_logits = None if self._ids is None else torch.zeros_like(self._ids, dtype=tiles.dtype)

    def take(self, z: Tensor, columns: slice) -> None:
        """Take in the (M, v) logits of these tokens; z is overwritten."""
        local = self.block.targets[:, None] - columns.start
        inside = (local >= 0) & (local < z.shape[1])
        rows = inside.nonzero()[:, 0]
        z[rows, local[rows, 0]] = self._target[rows, 0]
        if self._above is not None:
            # 0.0 and 1.0 rather than booleans: compared and summed at a third of the time
            self._above += torch.gt(z, self._target, out=self._tiles.scratch("spare", *z.shape)).sum(-1)
        if self._top_k:
            self._take_top(z, columns.start)
        if self._ids is not None and self._id_logits is not None:
            local_ids = self._ids - columns.start
            found = z.gather(1, local_ids.clamp(0, z.shape[1] - 1))
            self._id_logits = torch.where((local_ids >= 0) & (local_ids < z.shape[1]), found, self._id_logits)
        z[rows, local[rows, 0]] = -math.inf
        spare = self._tiles.scratch("spare", *z.shape) if self._others.weighted is not None else None
        self._others.consume(z, spare)

    def _take_top(self, z: Tensor, start: int) -> None:
        """Merge the tile's best into the best so far; only rows that have something better, once k are known."""
        full = self._top.shape[1] == self._top_k
        rows = (z.amax(-1) > self._top[:, -1]).nonzero()[:, 0] if full else slice(None)
        values, ids = z[rows].topk(min(self._top_k, z.shape[1]), dim=-1)
        values = torch.cat([self._top[rows], values], 1)
        ids = torch.cat([self._top_ids[rows], ids + start], 1)
        values, order = values.sort(dim=-1, descending=True, stable=True)  # equal logits: the earlier tile's first
        values, ids = values[:, : self._top_k], ids.gather(1, order)[:, : self._top_k]
        if full:
            self._top[rows], self._top_ids[rows] = values, ids
        else:
            self._top, self._top_ids = values, ids

    def scores(self) -> HeadScores:
        """The block's figures, without the padding."""
        scores, everything = _figures(self._target[:, 0], self._others, self._above, self._want)
        logprobs = scores.logprobs

        def logprobs_of(logits: Tensor, ids: Tensor) -> Tensor:
            plain = (logits - everything.maximum[:, None]) - everything.total.log()[:, None]
            known = torch.where(ids == self.block.targets[:, None], logprobs[:, None], plain)
            return known.masked_fill(logprobs.isnan()[:, None], math.nan)

        ids, of_ids = self._ids, self._id_logits
        scores = replace(
            scores,
            top_ids=self._top_ids.int() if self._top_k else None,
            top_logprobs=logprobs_of(self._top, self._top_ids) if self._top_k else None,
            token_logprobs=None if ids is None or of_ids is None else logprobs_of(of_ids, ids),
        )
        return scores.first(self.block.rows)
