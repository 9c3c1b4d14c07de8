"""An exponential moving average of weights: whether another checkpoint may be mixed into the hosted one (same tensors, and a
config that makes the same of them), and the mix."""

from __future__ import annotations

from typing import Any

import torch
from grpo_client.models.reading import Reading
from grpo_numerics.checkpoint.loaded import differing
from grpo_numerics.checkpoint.names import told
from transformers import PreTrainedModel

# Where a checkpoint came from, how it is stored, sampled from or trained; no log-prob changes with any of them.
_BESIDE_THE_FIGURES = frozenset(
    (
        *(
            "_name_or_path",
            "transformers_version",
            "dtype",
            "torch_dtype",
            "architectures",
            "auto_map",
            "tokenizer_class",
        ),
        *("use_cache", "return_dict", "output_attentions", "output_hidden_states", "torchscript", "is_encoder_decoder"),
        *(
            "pad_token_id",
            "bos_token_id",
            "eos_token_id",
            "decoder_start_token_id",
            "id2label",
            "label2id",
            "problem_type",
        ),
        *(
            "initializer_range",
            "attention_dropout",
            "hidden_dropout",
            "resid_pdrop",
            "embd_pdrop",
            "attn_pdrop",
            "dropout",
        ),
        *("pretraining_tp", "gradient_checkpointing", "chunk_size_feed_forward"),
    )
)


@torch.no_grad()
def mix(hosted: PreTrainedModel, other: PreTrainedModel, decay: float, source: str) -> None:
    """other <- decay * hosted + (1 - decay) * other, tensor by tensor, in fp32; the hosted one stays as it is.

    Raises ValueError for a decay outside [0, 1], and unless `other` (read from `source`) is the same model.
    """
    if not 0.0 <= decay <= 1.0:
        raise ValueError(f"decay: must be in [0, 1], got {decay}")
    check_mixable(hosted, other, source)
    theirs, ours = other.state_dict(), hosted.state_dict()
    with Reading(None):  # memory may run out
        for name, tensor in theirs.items():
            if tensor.is_floating_point():
                tensor.copy_(torch.lerp(tensor.float(), ours[name].to(tensor.device).float(), decay))


def check_mixable(hosted: PreTrainedModel, other: PreTrainedModel, source: str) -> None:
    """ValueError, naming what differs, unless `other` (read from `source`) is the hosted model with other numbers in it."""
    if names := differing(other.state_dict(), hosted.state_dict()):
        raise ValueError(
            f"model: {source!r} does not have the tensors of the hosted reference ({told(names)}); swap instead of mixing"
        )
    theirs, ours = other.config.to_dict(), hosted.config.to_dict()
    if settings := _differing_settings(theirs, ours):
        raise ValueError(
            f"model: the config of {source!r} differs from that of the hosted reference ({', '.join(settings[:4])}); "
            "swap instead of mixing"
        )


def _differing_settings(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """Each as `name is theirs, not ours`, nested ones by their path."""
    found: list[str] = []
    for name in sorted((theirs.keys() | ours.keys()) - _BESIDE_THE_FIGURES):
        a, b = theirs.get(name), ours.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found += [f"{name}.{inner}" for inner in _differing_settings(a, b)]
        elif a != b:
            found.append(f"{name} is {a}, not {b}")
    return found
