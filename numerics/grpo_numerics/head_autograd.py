"""The same log-probs with gradient: forward in tiles, backward in tiles computed anew, no logits kept.

For training: the policy's log-probs come from the code that scores the reference. Memory beside inputs and gradients
is that of a few tiles. Gradients are accumulated in fp32 (fp64 for fp64 input) and rounded once.

With y the transformed logits of a row, p = softmax(y), t the target and H the entropy:

    d log p_t / dy_j = 1[j = t] - p_j          dH / dy_j = -p_j (log p_j + H)

and then back through symlog, temperature, soft-cap, scale to the products hidden times weight. At the target
1 - p_t = -expm1(log p_t), which keeps its precision where p_t rounds to 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, NamedTuple, cast, overload

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .head import score_rows
from .head_spec import HeadSpec, Tile
from .head_tiles import LogitTiles, RowBlock, padded
from .online import FAR_BELOW
from .transforms import Normalizer


@overload
def fused_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    spec: HeadSpec | None = None,
    temperature: float | Tensor = 1.0,
    normalizer: Normalizer = "softmax",
    return_entropy: Literal[False] = False,
    tile: Tile | tuple[int, int] | None = None,
) -> Tensor: ...
@overload
def fused_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    spec: HeadSpec | None = None,
    temperature: float | Tensor = 1.0,
    normalizer: Normalizer = "softmax",
    return_entropy: Literal[True],
    tile: Tile | tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]: ...
def fused_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    spec: HeadSpec | None = None,
    temperature: float | Tensor = 1.0,
    normalizer: Normalizer = "softmax",
    return_entropy: bool = False,
    tile: Tile | tuple[int, int] | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Log-prob of one target a row, (R,), and with return_entropy the entropy too, (R,); fp32, or fp64 for fp64 input.

    Arguments as in `score_rows`. Differentiable in hidden, weight and spec.bias, once; temperature is a constant. A row
    whose incoming gradient is exactly 0 (a masked token) is skipped in the backward pass: it costs nothing, and
    whatever it holds, NaN too, reaches no gradient.
    """
    spec = spec or HeadSpec()
    if isinstance(temperature, Tensor):
        temperature = temperature.detach()
    plain = replace(spec, bias=None)
    out = _FusedLogprobs.apply(hidden, weight, spec.bias, targets, plain, temperature, normalizer, return_entropy, tile)
    logprobs, entropy = cast("tuple[Tensor, Tensor | None]", out)
    return logprobs if entropy is None else (logprobs, entropy)


class _FusedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        spec: HeadSpec,
        temperature: float | Tensor,
        normalizer: Normalizer,
        with_entropy: bool,
        tile: Tile | tuple[int, int] | None,
    ) -> tuple[Tensor, Tensor | None]:
        scores = score_rows(
            hidden,
            weight,
            targets,
            spec=replace(spec, bias=bias),
            temperature=temperature,
            normalizer=normalizer,
            want={"logsumexp", "entropy"} if with_entropy else {"logsumexp"},
            tile=tile,
        )
        ctx.save_for_backward(hidden, weight, bias, targets, scores.logprobs, scores.logsumexp, scores.entropy)
        ctx.settings = (spec, temperature, normalizer, tile)
        return scores.logprobs, scores.entropy

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *upstream: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, logprobs, logsumexp, entropy = ctx.saved_tensors
        spec, temperature, normalizer, tile = ctx.settings
        of_logprob, of_entropy = (
            torch.zeros_like(logprobs) if gradient is None else gradient.to(logprobs.dtype) for gradient in upstream
        )
        rows = ((of_logprob != 0) | (of_entropy != 0)).nonzero()[:, 0]
        tiles = LogitTiles(
            hidden[rows],
            weight,
            targets[rows],
            spec=replace(spec, bias=bias),
            temperature=temperature[rows] if isinstance(temperature, Tensor) else temperature,
            normalizer=normalizer,
            tile=tile,
        )
        figures = _Figures(of_logprob, of_entropy, logprobs, logsumexp, entropy).map(lambda figure: figure[rows])
        gradient = _Gradient(tiles, needs=ctx.needs_input_grad[:3])
        gradient.accumulate([figures.of(block) for block in tiles.blocks])
        d_hidden = None
        if gradient.hidden is not None:
            d_hidden = torch.zeros_like(hidden)
            d_hidden[rows] = gradient.hidden.to(hidden.dtype)
        d_bias = None if gradient.bias is None or bias is None else gradient.bias.to(bias.dtype)
        return d_hidden, gradient.weight, d_bias, None, None, None, None, None, None


class _Figures(NamedTuple):
    """What the gradient needs to know of each row, (R,); of a block (M, 1), with zeros in the padding."""

    of_logprob: Tensor  # incoming gradients
    of_entropy: Tensor
    logprob: Tensor
    logsumexp: Tensor
    entropy: Tensor | None

    def map(self, change: Callable[[Tensor], Tensor]) -> _Figures:
        """The same change made to each."""
        return _Figures(
            change(self.of_logprob),
            change(self.of_entropy),
            change(self.logprob),
            change(self.logsumexp),
            None if self.entropy is None else change(self.entropy),
        )

    def of(self, block: RowBlock) -> _Figures:
        """Those of one block out of those of all rows."""
        return self.map(lambda figure: padded(figure[block.start : block.stop], block.height)[:, None])


class _Gradient:
    """Accumulates the gradients of those of (hidden, weight, bias) that are needed; the others stay None.

    hidden: (R, D) and bias: (V,) in the compute dtype; weight: (V, D) in the weight's own.
    """

    def __init__(self, tiles: LogitTiles, needs: tuple[bool, bool, bool]) -> None:
        vocab, dim = tiles.weight.shape
        like = torch.empty(0, dtype=tiles.dtype, device=tiles.weight.device)
        self.tiles = tiles
        self.hidden = like.new_zeros(tiles.blocks[-1].stop, dim) if needs[0] else None
        self.weight = torch.empty_like(tiles.weight) if needs[1] else None
        self.bias = like.new_zeros(vocab) if needs[2] else None

    def accumulate(self, figures: list[_Figures]) -> None:
        """One pass over all tiles. figures: of each row block."""
        tiles = self.tiles
        for columns in tiles.columns():
            weight_rows = tiles.weight_rows(columns)
            full_rows = tiles.upcast("full weight", weight_rows)
            d_weight = torch.zeros_like(full_rows) if self.weight is not None else None
            for block, block_figures in zip(tiles.blocks, figures, strict=True):
                d_logits = _logits_gradient(tiles, block, columns, weight_rows, block_figures)
                if self.hidden is not None:
                    self.hidden[block.start : block.stop] += (d_logits @ full_rows)[: block.rows]
                if d_weight is not None:
                    d_weight.addmm_(d_logits.t(), tiles.upcast("hidden", block.hidden))
                if self.bias is not None:
                    self.bias[columns] += d_logits.sum(0)
            if self.weight is not None and d_weight is not None:
                self.weight[columns] = d_weight


def _logits_gradient(
    tiles: LogitTiles, block: RowBlock, columns: slice, weight_rows: Tensor, figures: _Figures
) -> Tensor:
    """(M, v) gradient at the products of hidden and weight (which is the bias' own), in scratch."""
    products = tiles.products(block, weight_rows)
    bias = None if tiles.bias is None else tiles.bias[columns]
    slope = tiles.slope(products, bias, block.temperature)
    log_p = tiles.transform_(products, bias, block.temperature).sub_(figures.logsumexp)
    at_target = -figures.of_logprob * torch.expm1(figures.logprob)
    if figures.entropy is None:
        gradient = log_p.exp_().mul_(-figures.of_logprob)
    else:
        p = torch.exp(log_p, out=tiles.scratch("spare", *log_p.shape))
        surprise = figures.of_entropy * (figures.logprob.clamp(min=FAR_BELOW) + figures.entropy)
        at_target = at_target - figures.logprob.exp() * surprise
        gradient = log_p.clamp_(min=FAR_BELOW).add_(figures.entropy).mul_(figures.of_entropy)
        gradient.add_(figures.of_logprob).mul_(p).neg_()
    local = block.targets[:, None] - columns.start
    rows = ((local >= 0) & (local < gradient.shape[1])).nonzero()[:, 0]
    gradient[rows, local[rows, 0]] = at_target[rows, 0]
    return gradient.mul_(slope)
