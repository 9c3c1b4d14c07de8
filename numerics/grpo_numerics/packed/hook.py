"""The packed attention in the signature that transformers' `AttentionInterface` calls, without importing transformers.

    AttentionInterface.register(NAME, attention_forward); model.set_attn_implementation(NAME)
    with packed_stream(schedule) as calls:
        hidden = backbone(input_ids=ids[None], position_ids=positions[None], use_cache=False).last_hidden_state

No mask function goes with it: the model then prepares no mask. Whoever uses it must check `calls`: a model may take the
name and never call the function, and be wrong without a word.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .attention import packed_attention
from .schedule import Schedule

NAME = "grpo_packed"


class Shape(NamedTuple):
    """Of one call: query heads, numbers of a query and of a value in each, and the window, None without one."""

    heads: int
    query: int
    value: int
    window: int | None


@dataclass
class Calls:
    """How often attention was asked for in one forward: it must come to one call per attention layer. shapes: of each call,
    None unless they are asked for."""

    schedule: Schedule
    count: int = 0
    shapes: list[Shape] | None = None


_current: ContextVar[Calls | None] = ContextVar("grpo_packed_stream", default=None)


@contextmanager
def packed_stream(schedule: Schedule, *, shapes: bool = False) -> Generator[Calls]:
    """Inside, attention layers of a model that was switched to `NAME` read the stream by `schedule`. shapes: note them."""
    calls = Calls(schedule, shapes=[] if shapes else None)
    with stream_again(calls):
        yield calls


def current_stream() -> Calls | None:
    """The stream that layers read here, to be given to `stream_again`; None outside one."""
    return _current.get()


@contextmanager
def stream_again(calls: Calls | None) -> Generator[None]:
    """Re-enter a stream that was left: gradient checkpointing runs layers anew in backward, possibly on another thread."""
    token = _current.set(calls)
    try:
        yield
    finally:
        _current.reset(token)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """query (1, H, T, D), key and value (1, H_kv, T, D) -> ((1, T, H, D), None). Raises RuntimeError outside a stream."""
    calls = _current.get()
    if calls is None:
        raise RuntimeError("the packed attention was called outside `packed_stream`")
    if attention_mask is not None or dropout:
        raise RuntimeError("the packed attention takes neither a mask nor dropout: call model.eval() and pass no mask")
    calls.count += 1
    if calls.shapes is not None:
        calls.shapes.append(Shape(query.shape[1], query.shape[-1], value.shape[-1], sliding_window))
    device = query.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        # Rotary embeddings leave q and k in fp32 beside a bf16 v; and the backward of this function runs outside autocast.
        dtype = torch.get_autocast_dtype(device)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    out = packed_attention(
        query[0],
        key[0],
        value[0],
        calls.schedule,
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        softcap=softcap,
        window=sliding_window,
        sinks=s_aux,
    )
    return out[None], None


def stream_inputs(schedule: Schedule) -> dict[str, Tensor]:
    """`input_ids` and `position_ids`, (1, T) int64 each, padded to `schedule.padded_tokens` in segments of PADDING."""
    there = schedule.inputs.on(schedule.device)
    return {name: there[name] for name in ("input_ids", "position_ids")}
