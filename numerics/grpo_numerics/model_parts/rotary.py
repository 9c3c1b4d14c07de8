"""Rotary frequencies that depend on how long a sequence is: LongRoPE and dynamic NTK.

LongRoPE takes its long factors where the sequence, its last token included, is longer than what the model was first trained
on; dynamic NTK stretches its base with every token beyond the trained length, and transformers keeps what the longest sequence
so far has stretched. So there a score depends on tokens that follow and on sequences that came before, unless each sequence
runs by itself, whole, and on frequencies as they were when the model was loaded. Static schemes (linear, YaRN, Llama 3) need
none of it.
"""

from __future__ import annotations

from typing import Any

from torch import nn


def rotary_edge(config: Any) -> int | None:
    """The most tokens a sequence may have before its frequencies depend on its length; None where they never do."""
    own = getattr(config, "rope_parameters", None) or {}
    tables = [own, *(table for table in own.values() if isinstance(table, dict))]
    edges = [edge for table in tables if (edge := _edge(config, table)) is not None]
    return min(edges, default=None)


def stretched_length(config: Any) -> int | None:
    """The most tokens that dynamic NTK is made for, trained length times factor; None for any other scheme."""
    own = getattr(config, "rope_parameters", None) or {}
    tables = [table for table in (own, *own.values()) if isinstance(table, dict) and _is_dynamic(table)]
    trained = getattr(config, "max_position_embeddings", None)
    if not tables or not trained:
        return None
    return int(trained * max(1.0, min(float(table.get("factor") or 1.0) for table in tables)))


def fresh_rotary(model: nn.Module) -> None:
    """Put dynamic frequencies back to what they were at load, as if no sequence had come before."""
    for module in model.modules():
        if not hasattr(module, "original_max_seq_len"):
            continue
        names = [name for name, _ in module.named_buffers(recurse=False) if name.endswith("original_inv_freq")]
        for name in names:
            prefix = name.removesuffix("original_inv_freq")
            original = getattr(module, name)
            setattr(module, f"{prefix}inv_freq", original.clone())
            setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)


def _edge(config: Any, table: dict[str, Any]) -> int | None:
    if table.get("rope_type") == "longrope":
        # absent: transformers takes the model's own length for it
        return int(table.get("original_max_position_embeddings") or config.max_position_embeddings)
    return int(config.max_position_embeddings) if _is_dynamic(table) else None


def _is_dynamic(table: dict[str, Any]) -> bool:
    return "dynamic" in str(table.get("rope_type", ""))
