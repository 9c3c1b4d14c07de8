"""How much arithmetic a model's matrices are, counted in two small forwards by the rows that each of them is given.

R rows times a matrix of K x N are R K N multiplications and as many additions. Of a mixture of experts those count that a token
is sent to. Attention multiplies each query with the keys that it sees, and its weights with their values: that is counted where
attention is ours, for there the probe has shown which keys those are. Not counted: look-ups, norms, activations, recurrences.
The sum over what the devices could have done is "model FLOPs utilization" (PaLM, Chowdhery et al. 2022, appendix B; there each
query sees the whole sequence), a lower bound where attention is the model's own.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from grpo_numerics.packed import Shape
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from .anatomy import Anatomy, here
from .cards import peak_flops
from .prepared import Prepared

log = logging.getLogger(__name__)

# Of the forwards in which it is counted: what one token adds is their difference, for a few models add rows of their own.
_FEW, _MORE = 2, 4
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# What configs call the number of experts that a token is sent to.
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_k")
# Parameters that are no known matrix, such as a recurrence's, may be this share of those that are.
_UNKNOWN = 0.1


@dataclass(frozen=True, slots=True)
class Flops:
    """Operations of one token through the body's matrices, and of one row through the head; 0 where they are not known. pair:
    of one query with one key in all layers that have this window (None: without one). peak: the most that the devices do in a
    second, None where either is not known."""

    token: float = 0.0
    row: float = 0.0
    peak: float | None = None
    pair: Mapping[int | None, float] = field(default_factory=lambda: {})

    def with_attention(self, shapes: Sequence[Shape], heads: int | None = None) -> Flops:
        """shapes: of attention's calls in one forward. heads: of each call, where this process has some of them only."""
        pair: dict[int | None, float] = {}
        for shape in shapes:
            each = 2.0 * (heads or shape.heads) * (shape.query + shape.value)
            pair[shape.window] = pair.get(shape.window, 0.0) + each
        return replace(self, pair=pair) if self.token else self

    def of(self, batch: Prepared) -> float:
        """Of a batch. Microseconds."""
        attention = 0.0
        if batch.positions is not None:
            seen = batch.positions + 1  # a query sees its own key, too
            for window, pair in self.pair.items():
                attention += pair * int(np.sum(seen if window is None else np.minimum(seen, window)))
        return self.token * batch.tokens + self.row * len(batch.targets) + attention


@torch.inference_mode()
def count_flops(
    model: PreTrainedModel, parts: Anatomy, cards: Sequence[str], peak_tflops: float | None = None
) -> Flops:
    """cards, peak_tflops: as in `cards.peak_flops`. Nothing is known, and the log says so, where much of what a model
    multiplies with is of an unknown kind. Of a model that lies on several processes: all of it, by the cards of this one; and
    all of them must call it."""
    chosen = _experts_chosen(model.config)
    few, more = (_counted(parts, tokens, chosen) for tokens in (_FEW, _MORE))
    if more.unknown > _UNKNOWN * more.products:
        log.info("the arithmetic of %s is not counted: its matrices are of an unknown kind", type(model).__name__)
        return Flops()
    token = 2 * (more.products - few.products) / (_MORE - _FEW)
    return Flops(token, 2 * math.prod(parts.weight.shape), peak_flops(cards, _precision(model), peak_tflops))


def _counted(parts: Anatomy, tokens: int, chosen: int | None) -> _Count:
    count = _Count(tokens, chosen)
    hooks = [module.register_forward_hook(count.note, with_kwargs=True) for module in parts.modules]
    try:
        ids = torch.ones(1, tokens, dtype=torch.long, device=parts.device)
        parts.body(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return count


class _Count:
    """Of a forward of so many tokens. products: numbers that were multiplied, each with a row. unknown: those of which nothing
    is known. chosen: experts of a token."""

    def __init__(self, tokens: int, chosen: int | None) -> None:
        self._tokens, self._chosen = tokens, chosen
        self.products, self.unknown = 0, 0

    def note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
        """A module was called."""
        if isinstance(module, nn.Embedding):
            return
        own = {name: p for name, p in module.named_parameters(recurse=False) if p.dim() > 1}
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if isinstance(module, _CONVOLUTIONS):
            self.products += self._tokens * _numbers(own.values())
        elif (sides := _sides(module)) is not None and isinstance(output, Tensor):
            self.products += here(output).numel() // _outputs(module, own) * math.prod(sides)
        elif stacks := [p for p in own.values() if p.dim() == 3 and p.is_floating_point() and min(p.shape) > 1]:
            self._experts(stacks, given)
        else:
            weights = [p for name, p in own.items() if name == "weight" and p.dim() == 2 and p.is_floating_point()]
            self.products += _rows(given) * _numbers(weights)
            self.unknown += self._tokens * (_numbers(own.values()) - _numbers(weights))

    def _experts(self, stacks: list[nn.Parameter], given: list[Tensor]) -> None:
        """stacks: (E, K, N) matrices of all experts. Of which a token is sent to, the module is told in (T, k) indices."""
        index = next((g for g in given if g.dim() == 2 and len(g) == self._tokens and not g.is_floating_point()), None)
        chosen = self._chosen if index is None else index.shape[1]
        each = sum(math.prod(p.shape[1:]) for p in stacks)
        if chosen is None:
            self.unknown += self._tokens * each * stacks[0].shape[0]
        else:
            self.products += self._tokens * each * chosen


def _sides(module: nn.Module) -> tuple[int, int] | None:
    """K and N of a layer that says so, whatever its weight is packed as and however many processes it is cut over. Rows are
    counted at its output: blocks of a matrix may stand side by side, each with a part of the input as a row of its own."""
    inputs, outputs = getattr(module, "in_features", None), getattr(module, "out_features", None)
    return (inputs, outputs) if isinstance(inputs, int) and isinstance(outputs, int) else None


def _outputs(module: nn.Module, own: Mapping[str, nn.Parameter]) -> int:
    """Numbers in a row of its output, as it lies on this process."""
    weight = own.get("weight")
    if weight is not None and weight.is_floating_point() and weight.dim() == 2:
        return here(weight).shape[0]
    return int(module.out_features)  # pyright: ignore[reportArgumentType]


def _rows(given: list[Tensor]) -> int:
    return given[0].numel() // given[0].shape[-1] if given and given[0].dim() else 0


def _numbers(parameters: Iterable[Tensor]) -> int:
    return sum(math.prod(p.shape) for p in parameters)


def _experts_chosen(config: PretrainedConfig) -> int | None:
    text = config.get_text_config(decoder=True)
    return next((n for name in _CHOSEN if isinstance(n := getattr(text, name, None), int)), None)


def _precision(model: PreTrainedModel) -> torch.dtype | None:
    """The type in which it multiplies; None where weights have eight bits, for they may be multiplied so, or widened first."""
    narrow = any(p.is_floating_point() and p.element_size() == 1 for p in model.parameters())
    return None if narrow else model.dtype
