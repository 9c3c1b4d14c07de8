"""The same log-probs with gradient: forward in tiles, backward in tiles computed anew, no logits kept.

For training: the policy's log-probs come from the code that scores the reference. Memory beside inputs and gradients
is that of a few tiles. Gradients are accumulated in fp32 (fp64 for fp64 input) and rounded once.
The formulas are in `gradient`. On a CUDA device the tiles are those of the Triton kernels, see `choice`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, cast, overload

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..transforms import Normalizer
from .choice import on_triton
from .gradient import HeadGradient, RowFigures
from .score import score_rows
from .spec import HeadSpec, Tile
from .tiles import LogitTiles


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
        kept: dict[str, Any] = {
            "hidden": hidden[rows],
            "weight": weight,
            "targets": targets[rows],
            "spec": replace(spec, bias=bias),
            "temperature": temperature[rows] if isinstance(temperature, Tensor) else temperature,
            "normalizer": normalizer,
            "tile": tile,
            "checked": True,
        }
        figures = RowFigures(of_logprob, of_entropy, logprobs, logsumexp, entropy).map(lambda figure: figure[rows])
        if on_triton(hidden, weight):
            from .triton import TritonGradient, TritonTiles

            tiles = TritonTiles(**kept)
            gradient = TritonGradient(tiles, needs=ctx.needs_input_grad[:3])
        else:
            tiles = LogitTiles(**kept)
            gradient = HeadGradient(tiles, needs=ctx.needs_input_grad[:3])
        gradient.accumulate([figures.of(block) for block in tiles.blocks])
        d_hidden = None
        if gradient.hidden is not None:
            d_hidden = torch.zeros_like(hidden)
            d_hidden[rows] = gradient.hidden.to(hidden.dtype)
        d_bias = None if gradient.bias is None or bias is None else gradient.bias.to(bias.dtype)
        return d_hidden, gradient.weight, d_bias, None, None, None, None, None, None
