"""A model's layers, read off its config: what is a layer's own, and how many of them attend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .rotary import stretched_length


def layer_configs(config: Any) -> Sequence[Any]:
    """One config, or one for each layer where they differ (Gemma 4): there the whole's refuses to say what is a layer's."""
    return config.per_layer_config if getattr(config, "is_heterogeneous", False) else [config]


def attention_layers(config: Any) -> int:
    """How many calls of attention one forward makes."""
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return sum("attention" in kind for kind in kinds)
    return int(config.num_hidden_layers)


def longest_window(config: Any) -> int:
    """The longest sliding window of any layer, in tokens; 0 without one."""
    return max(int(getattr(layer, "sliding_window", None) or 0) for layer in layer_configs(config))


def longest_sequence(config: Any) -> int:
    """The most tokens of prompt + completion that the model is made for; 2^20 for recurrent ones, which have no limit."""
    if (stretched := stretched_length(config)) is not None:
        return stretched
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        if isinstance(value := getattr(config, name, None), int) and value > 0:
            return value
    return 1 << 20
