"""Where a causal language model of transformers keeps the parts that scoring needs: its body, its head, its limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from grpo_numerics import HeadSpec
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PretrainedConfig, PreTrainedModel

from .logit_scale import logit_scale

# Frequencies that change with the longest sequence of the batch: a sequence would score differently in company.
_LENGTH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})


@dataclass(frozen=True)
class Anatomy:
    """body: tokens -> hidden states. weight (V, D) and spec: hidden states -> logits, in `HeadSpec`'s order.

    max_length: most tokens of prompt + completion. attention_layers: how many calls of attention one forward makes.
    token_bytes: activation bytes one token of a batch holds at the forward's peak. widths: numbers a token in the tensors
    between two layers, on this process.
    """

    body: nn.Module
    weight: Tensor
    spec: HeadSpec
    vocab_size: int
    max_length: int
    attention_layers: int
    token_bytes: int
    packable: bool
    widths: tuple[int, ...]

    @property
    def device(self) -> torch.device:
        """Where the first tokens go in; with a device map, the device of the embedding."""
        return next(self.body.parameters()).device


def anatomy(model: PreTrainedModel) -> Anatomy:
    """Read the parts off a loaded model. Raises ValueError when it has no language-model head."""
    head = model.get_output_embeddings()
    if head is None or not hasattr(head, "weight"):
        raise ValueError(f"model: {type(model).__name__} has no language-model head; a causal language model is needed")
    config = model.config.get_text_config(decoder=True)
    # cut over several processes: each gets it whole, and scores its share of the rows
    weight = head.weight.full_tensor() if isinstance(head.weight, DTensor) else head.weight
    # a part of a larger model may name the larger one's body, and so find only itself
    bodies = (model.base_model, model.get_decoder(), getattr(model, "model", None))
    body = next((b for b in bodies if isinstance(b, nn.Module) and b is not model), None)
    if body is None:
        raise ValueError(f"model: the body of {type(model).__name__} was not found; use another architecture")
    bias, softcap = getattr(head, "bias", None), getattr(config, "final_logit_softcapping", None)
    return Anatomy(
        body=body,
        weight=weight,
        spec=HeadSpec(bias, logit_scale(model, body, weight, bias, softcap), softcap),
        vocab_size=min(len(weight), len(next(model.get_input_embeddings().parameters()))),
        max_length=_max_length(config),
        attention_layers=_attention_layers(config),
        token_bytes=max(_token_bytes(c, weight.element_size()) for c in layer_configs(config)),
        packable=not _rope_depends_on_length(config),
        widths=_widths(body),
    )


def layer_configs(config: PretrainedConfig) -> Sequence[PretrainedConfig]:
    """One config, or one for each layer where they differ (Gemma 4): there the whole's refuses to say what is a layer's."""
    return config.per_layer_config if getattr(config, "is_heterogeneous", False) else [config]


def _max_length(config: PretrainedConfig) -> int:
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        if isinstance(value := getattr(config, name, None), int) and value > 0:
            return value
    return 1 << 20  # recurrent models have no limit of their own


def _attention_layers(config: PretrainedConfig) -> int:
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return sum("attention" in kind for kind in kinds)
    return int(config.num_hidden_layers)


def _token_bytes(config: PretrainedConfig, element: int) -> int:
    """Residual stream, norm and attention output; queries, keys and values before and after rotary; gate, up and product."""
    hidden = int(config.hidden_size)
    heads = int(getattr(config, "num_attention_heads", None) or 1)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    head_dim = int(getattr(config, "head_dim", None) or hidden // heads)
    inner = getattr(config, "intermediate_size", None) or getattr(config, "ffn_dim", None) or 4 * hidden
    inner = max(inner) if isinstance(inner, list | tuple) else int(inner)
    return element * (4 * hidden + 2 * (heads + 2 * kv_heads) * head_dim + 3 * inner)


def _widths(body: nn.Module) -> tuple[int, ...]:
    """Sides of all matrices but the embeddings, and their halves: a gate and what it gates may come from one matrix."""
    sides: set[int] = set()
    for module in body.modules():
        if isinstance(module, nn.Embedding):
            continue
        for parameter in module.parameters(recurse=False):
            local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            sides.update(local.shape if local.dim() == 2 else ())
    return tuple(sorted(sides | {side // 2 for side in sides if side % 2 == 0}))


def _rope_depends_on_length(config: PretrainedConfig) -> bool:
    rope = getattr(config, "rope_parameters", None) or {}
    tables = [rope, *(v for v in rope.values() if isinstance(v, dict))]
    return any(table.get("rope_type") in _LENGTH_DEPENDENT_ROPE for table in tables)
