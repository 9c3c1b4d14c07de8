"""Log-probs of chosen tokens and of all the others together, with gradient: what a student is compared by.

With y the transformed logits of a row, p = softmax(y), S the distinct chosen ids and P their mass:

    d log p_i / dy_j = 1[j = i] - p_j
    d log(1 - P) / dy_j = (p_j / (1 - P) - p_j)  for j outside S,  -p_j  in S

so the gradient of any loss over these figures is, outside S, a number a row times p: tiles computed anew give it, and
nothing (R, V) exists. Inside S it is set token by token, with 1 - p_i = -expm1(log p_i) where p_i rounds to 1.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..stable import log_softmax, logsumexp
from ..transforms import Normalizer, normalized_logits
from .gradient import HeadGradient
from .score import score_rows
from .spec import HeadSpec, Tile
from .tiles import LogitTiles, RowBlock, padded


class ChosenLogprobs(NamedTuple):
    """logprobs: (R, j) of the chosen ids, -inf where the id is -1. tail: (R,) log of the mass outside the distinct chosen ids,
    a sum over all others; -inf where none are left. fp32, or fp64 for fp64 input, in nats."""

    logprobs: Tensor
    tail: Tensor


def fused_chosen_logprobs(
    hidden: Tensor,
    weight: Tensor,
    token_ids: Tensor,
    *,
    spec: HeadSpec | None = None,
    temperature: float | Tensor = 1.0,
    normalizer: Normalizer = "softmax",
    tile: Tile | tuple[int, int] | None = None,
) -> ChosenLogprobs:
    """Of R rows. token_ids: (R, j) integer ids, j >= 1, -1 for none; an id may stand there twice.

    Other arguments as in `score_rows`. Differentiable in hidden, weight and spec.bias, once; temperature is a constant. A row
    all of whose incoming gradients are 0 is skipped in the backward pass, whatever it holds. Raises ValueError.
    """
    spec = spec or HeadSpec()
    if token_ids.ndim != 2 or not token_ids.shape[1]:
        raise ValueError(f"token_ids must be (R, j) with j >= 1, got {tuple(token_ids.shape)}")
    if isinstance(temperature, Tensor):
        temperature = temperature.detach()
    plain = replace(spec, bias=None)
    return ChosenLogprobs(
        *_Chosen.apply(hidden, weight, spec.bias, token_ids, plain, temperature, normalizer, tile)  # pyright: ignore[reportArgumentType]
    )


def chosen_logprobs(
    logits: Tensor, token_ids: Tensor, *, temperature: float | Tensor = 1.0, normalizer: Normalizer = "softmax"
) -> ChosenLogprobs:
    """The same of logits (R, V) that are there already, for a head that cannot be fused."""
    scaled = normalized_logits(logits, temperature, normalizer)
    there, places = token_ids >= 0, token_ids.long().clamp(min=0)
    logprobs = log_softmax(scaled)
    rest = torch.ones_like(scaled, dtype=torch.bool)
    rows = torch.arange(len(places), device=places.device)[:, None].expand_as(places)
    rest[rows[there], places[there]] = False
    tail = logsumexp(logprobs.masked_fill(~rest, -math.inf))
    return ChosenLogprobs(torch.where(there, logprobs.gather(1, places), -math.inf), tail)


class _Chosen(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        token_ids: Tensor,
        spec: HeadSpec,
        temperature: float | Tensor,
        normalizer: Normalizer,
        tile: Tile | tuple[int, int] | None,
    ) -> tuple[Tensor, Tensor]:
        targets = token_ids[:, 0].clamp(min=0)  # the head scores one target a row; here it is one of the chosen
        scores = score_rows(
            hidden,
            weight,
            targets,
            spec=replace(spec, bias=bias),
            temperature=temperature,
            normalizer=normalizer,
            want={"logsumexp", "tail"},
            token_ids=token_ids,
            tile=tile,
        )
        assert scores.token_logprobs is not None
        assert scores.token_tail is not None
        ctx.save_for_backward(
            hidden, weight, bias, token_ids, scores.token_logprobs, scores.token_tail, scores.logsumexp
        )
        ctx.settings = (spec, temperature, normalizer, tile)
        return scores.token_logprobs, scores.token_tail

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, d_logprobs: Tensor | None, d_tail: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, token_ids, logprobs, tail, logsumexp = ctx.saved_tensors
        spec, temperature, normalizer, tile = ctx.settings
        there = token_ids >= 0
        of_logprobs = (torch.zeros_like(logprobs) if d_logprobs is None else d_logprobs).masked_fill(~there, 0.0)
        # Nothing is left outside S, or nothing was asked of it: no gradient, where 0 times infinity would be NaN.
        of_tail = torch.zeros_like(tail) if d_tail is None else d_tail.masked_fill(tail == -math.inf, 0.0)
        rows = ((of_logprobs != 0).any(1) | (of_tail != 0)).nonzero()[:, 0]
        tiles = LogitTiles(
            hidden[rows],
            weight,
            token_ids[rows, 0].clamp(min=0),
            spec=replace(spec, bias=bias),
            temperature=temperature[rows] if isinstance(temperature, Tensor) else temperature,
            normalizer=normalizer,
            tile=tile,
        )
        gradient = _ChosenGradient(tiles, needs=ctx.needs_input_grad[:3])
        figures = _Figures(of_logprobs, of_tail, token_ids.long(), logprobs, tail, logsumexp)
        mine = _Figures(*(figure[rows] for figure in figures))
        gradient.accumulate([mine.of(block) for block in tiles.blocks])
        d_hidden = None
        if gradient.hidden is not None:
            d_hidden = torch.zeros_like(hidden)
            d_hidden[rows] = gradient.hidden[: len(rows)].to(hidden.dtype)
        d_bias = None if gradient.bias is None or bias is None else gradient.bias.to(bias.dtype)
        return d_hidden, gradient.weight, d_bias, None, None, None, None, None


class _Figures(NamedTuple):
    """Of R rows: incoming gradients (R, j) and (R,), the ids, and what the forward found."""

    of_logprobs: Tensor
    of_tail: Tensor
    ids: Tensor
    logprobs: Tensor
    tail: Tensor
    logsumexp: Tensor

    def of(self, block: RowBlock) -> _Figures:
        """Those of one block. A padding row has a probability of 0 everywhere, and chose nothing."""
        fill = (0.0, 0.0, -1, -math.inf, 0.0, math.inf)
        mine = (figure[block.start : block.stop] for figure in self)
        return _Figures(*(padded(figure, block.height, value) for figure, value in zip(mine, fill, strict=True)))

    def at_chosen(self) -> Tensor:
        """(M, j) the gradient at each chosen token's logit: what all of its places in the row bring it together."""
        same = self.ids[:, :, None] == self.ids[:, None, :]
        own = (self.of_logprobs[:, None, :] * same).sum(-1)
        others = self.of_logprobs.sum(-1, keepdim=True) - own + self.of_tail[:, None]
        return -own * torch.expm1(self.logprobs) - self.logprobs.exp() * others


class _ChosenGradient(HeadGradient):
    """Sums over tiles of the gradient that the module's formulas give."""

    def logits_gradient(self, block: RowBlock, columns: slice, weight_rows: Tensor, figures: Any) -> Tensor:
        tiles = self.tiles
        products = tiles.products(block, weight_rows)
        bias = None if tiles.bias is None else tiles.bias[columns]
        slope = tiles.slope(products, bias, block.temperature)
        log_p = tiles.transform_(products, bias, block.temperature).sub_(figures.logsumexp[:, None])
        outside = torch.sub(log_p, figures.tail[:, None], out=tiles.scratch("spare", *log_p.shape))
        # A chosen token may be likelier than all others together; its place is overwritten below.
        outside.clamp_(max=0.0).exp_().mul_(figures.of_tail[:, None])
        weight_of_p = -(figures.of_logprobs.sum(-1) + figures.of_tail)
        gradient = log_p.exp_().mul_(weight_of_p[:, None]).add_(outside)
        local = figures.ids - columns.start
        rows, places = ((local >= 0) & (local < gradient.shape[1]) & (figures.ids >= 0)).nonzero(as_tuple=True)
        gradient[rows, local[rows, places]] = figures.at_chosen()[rows, places]
        return gradient.mul_(slope)
