"""A model's body and head: tokens to hidden states, hidden states to logits."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..head.spec import HeadSpec
from .logit_scale import logit_scale


def output_head(model: Any) -> nn.Module | None:
    """The layer that makes logits by one product with its `weight` (V, D) and nothing else; None where there is none.

    A head that is wrapped (LoRA on `lm_head`) adds something of its own and is none.
    """
    head = model.get_output_embeddings()
    if head is None or hasattr(head, "base_layer") or not isinstance(getattr(head, "weight", None), Tensor):
        return None
    return head


def body_of(model: Any) -> nn.Module | None:
    """What makes the last hidden states; None where it is not found."""
    # a part of a larger model may name the larger one's body, and so find only itself
    bodies = (model.base_model, model.get_decoder(), getattr(model, "model", None))
    return next((b for b in bodies if isinstance(b, nn.Module) and b is not model), None)


def head_spec(model: Any, body: nn.Module, head: nn.Module) -> HeadSpec:
    """What the model does between the head's product and its logits. All ranks of a sharded model must call it."""
    config = model.config.get_text_config(decoder=True)
    bias, softcap = getattr(head, "bias", None), getattr(config, "final_logit_softcapping", None)
    weight: Any = head.weight
    whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
    return HeadSpec(bias, logit_scale(model, body, whole, bias, softcap), softcap)
