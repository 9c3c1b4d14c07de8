"""Where a causal language model of transformers keeps the parts that scoring needs: its body, its head, its limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from grpo_numerics import HeadSpec
from grpo_numerics.model_parts import (
    attention_layers,
    body_of,
    head_spec,
    layer_configs,
    longest_sequence,
    longest_window,
    output_head,
    rotary_edge,
)
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PretrainedConfig, PreTrainedModel

from .text_path import modules_for_text


@dataclass(frozen=True)
class Anatomy:
    """body: tokens -> hidden states. weight (V, D) and spec: hidden states -> logits, in `HeadSpec`'s order.

    max_length: most tokens of prompt + completion. attention_layers: how many calls of attention one forward makes.
    token_bytes: activation bytes one token of a batch holds at the forward's peak. window: of sliding attention, 0 without.
    rotary_edge: see `model_parts`. widths: numbers a token in the tensors between two layers, as they lie on this process.
    modules: of the body, those that text runs through. parameters: numbers in them, as they lie on this process. heads: query
    heads, key heads and the size of one, in the first layer.
    """

    body: nn.Module
    weight: Tensor
    spec: HeadSpec
    vocab_size: int
    max_length: int
    attention_layers: int
    token_bytes: int
    window: int
    rotary_edge: int | None
    widths: tuple[int, ...]
    modules: tuple[nn.Module, ...]
    parameters: int
    heads: tuple[int, int, int]

    @property
    def device(self) -> torch.device:
        """Where the first tokens go in; with a device map, the device of the embedding."""
        return next(self.body.parameters()).device


def anatomy(model: PreTrainedModel) -> Anatomy:
    """Read the parts off a loaded model. Raises ValueError when it has no language-model head."""
    head = output_head(model)
    if head is None:
        raise ValueError(f"model: {type(model).__name__} has no language-model head; a causal language model is needed")
    body = body_of(model)
    if body is None:
        raise ValueError(f"model: the body of {type(model).__name__} was not found; use another architecture")
    modules = modules_for_text(body)
    own = {id(p): p for module in modules for p in module.parameters(recurse=False)}
    config = model.config.get_text_config(decoder=True)
    own_weight: Tensor = head.weight  # pyright: ignore[reportAssignmentType]
    # cut over several processes: each gets it whole, and scores its share of the rows
    weight = own_weight.full_tensor() if isinstance(own_weight, DTensor) else own_weight
    return Anatomy(
        body=body,
        weight=weight,
        spec=head_spec(model, body, head),
        vocab_size=min(len(weight), len(next(model.get_input_embeddings().parameters()))),
        max_length=longest_sequence(config),
        attention_layers=attention_layers(config),
        token_bytes=max(_token_bytes(c, weight.element_size()) for c in layer_configs(config)),
        window=longest_window(config),
        rotary_edge=rotary_edge(config),
        widths=_widths(_products(modules)),
        modules=modules,
        parameters=sum(here(p).numel() for p in own.values()),
        heads=_heads(layer_configs(config)[0]),
    )


def media_tokens(config: PretrainedConfig) -> dict[int, str]:
    """The ids that a model replaces by what it sees or hears, and which of the two: alone they say nothing."""
    found: dict[int, str] = {}
    for medium in ("image", "video", "audio"):
        for name in (f"{medium}_token_id", f"{medium}_token_index"):
            if isinstance(token := getattr(config, name, None), int) and token >= 0:
                found[token] = medium
    return found


def _token_bytes(config: PretrainedConfig, element: int) -> int:
    """Residual stream, norm and attention output; queries, keys and values before and after rotary; gate, up and product."""
    hidden = int(config.hidden_size)
    heads, kv_heads, head_dim = _heads(config)
    inner = getattr(config, "intermediate_size", None) or getattr(config, "ffn_dim", None) or 4 * hidden
    inner = max(inner) if isinstance(inner, list | tuple) else int(inner)
    return element * (4 * hidden + 2 * (heads + 2 * kv_heads) * head_dim + 3 * inner)


def _heads(config: PretrainedConfig) -> tuple[int, int, int]:
    """Query heads, key heads, numbers a head."""
    heads = int(getattr(config, "num_attention_heads", None) or 1)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    return heads, kv_heads, int(getattr(config, "head_dim", None) or config.hidden_size // heads)


def _products(modules: Sequence[nn.Module]) -> tuple[Tensor, ...]:
    """One matrix (N, D) of each shape that tokens are multiplied with, as it lies on this process."""
    by_shape: dict[torch.Size, Tensor] = {}
    for module in modules:
        if isinstance(module, nn.Embedding):
            continue
        for parameter in module.parameters(recurse=False):
            if parameter.dim() == 2 and parameter.is_floating_point():
                local = here(parameter)
                by_shape.setdefault(local.shape, local.detach())
    return tuple(by_shape.values())


def here(parameter: Tensor) -> Tensor:
    """What lies on this process of one that is cut over several."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def _widths(products: Sequence[Tensor]) -> tuple[int, ...]:
    """Sides of all matrices, and their halves: a gate and what it gates may come from one matrix."""
    sides = {side for product in products for side in product.shape}
    return tuple(sorted(sides | {side // 2 for side in sides if side % 2 == 0}))
