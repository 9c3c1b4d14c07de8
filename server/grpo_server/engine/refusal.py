"""Why a model that loaded whole still cannot be served: its numbers, or its architecture. Said once every way was tried."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from grpo_client.models.files import UnusableModel
from grpo_numerics.checkpoint.loaded import nonfinite_tensors
from grpo_numerics.checkpoint.names import told
from transformers import PreTrainedModel

from .anatomy import Anatomy
from .contract import Piece


def refusal(
    model: PreTrainedModel, parts: Anatomy, pieces: Sequence[Piece], own: str, tried: Sequence[str]
) -> UnusableModel:
    """The error to raise. own: the attention implementation of the model itself. tried: what was seen, way by way."""
    seen = f"Tried {'; '.join(tried)}"
    if broken := nonfinite_tensors(model):
        return UnusableModel(
            f"model: its weights hold NaN or infinity, in {told(broken)}: use another checkpoint. {seen}"
        )
    model.set_attn_implementation(own)
    if not _finite_by_itself(model, parts, pieces):
        return UnusableModel(
            f"model: its own forward gives NaN or infinity in {str(model.dtype).removeprefix('torch.')}, although its weights "
            f"are finite: use a wider --dtype, or another checkpoint. {seen}"
        )
    return UnusableModel(
        f"model: no way of scoring {type(model).__name__} reproduces its own forward, so it cannot be served; "
        f"use another architecture. {seen}"
    )


@torch.inference_mode()
def _finite_by_itself(model: PreTrainedModel, parts: Anatomy, pieces: Sequence[Piece]) -> bool:
    """Whether the model's own forward gives finite logits. One that refuses to run gives none that are not."""
    ids = torch.from_numpy(pieces[0].prompt).long()[None].to(parts.device)
    try:
        logits = model(input_ids=ids, use_cache=False).logits
    except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError, IndexError, KeyError):
        return True
    return bool(torch.isfinite(logits).all())
