"""Gradient checkpointing: keep each layer's input alone, and compute the layer again when backward comes to it.

transformers' own switch acts in training mode only, and the policy stays in eval mode (see `loading`); and what a layer
computes here depends on two things beside its arguments, the packed stream and the attention that the model is set to, both
of which have been left by the time of backward, on another thread where there is a GPU. So the layer's forward is wrapped
here, and both are put back for the second time.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from grpo_numerics.packed import current_stream, stream_again
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig, PreTrainedModel

from grpo_training.config import ConfigError
from grpo_training.models.loading import decoder_layers


def recompute_layers(model: PreTrainedModel) -> None:
    """Wrap every decoder layer of `model`, for good. Without gradient (sampling) nothing changes.

    Raises ConfigError for a model whose layers transformers does not mark as such.
    """
    layers = decoder_layers(model)
    if not layers:
        raise ConfigError(
            f"model.gradient_checkpointing: {type(model).__name__} has no layers that are marked for it "
            f"(GradientCheckpointingLayer); leave it false"
        )
    for layer in layers:
        layer.forward = partial(_checkpointed, layer.forward, model.config)


def _checkpointed(forward: Callable[..., Any], config: PretrainedConfig, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    again = partial(_as_before, config, config._attn_implementation, current_stream())
    return checkpoint(forward, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), again()), **kwargs)


@contextmanager
def _as_before(config: PretrainedConfig, attention: str | None, stream: Any) -> Generator[None]:
    own = config._attn_implementation
    config._attn_implementation = attention
    try:
        with stream_again(stream):
            yield
    finally:
        config._attn_implementation = own
