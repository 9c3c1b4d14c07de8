"""Prompts and completions through the policy's model: three ways, the same hidden states.

`packed` runs prompts and completions as one flat stream, each prompt once per group, equal completions once, by the very
attention that the reference server has; `plain` runs prompt and completion together, padded row by row; `alone` runs every
sequence by itself, for models whose rotary frequencies depend on the longest sequence of a batch. Which of them a model can
take is for the caller to know.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import numpy as np
import torch
from grpo_numerics.model_parts import attention_layers, fresh_rotary, rotary_edge
from grpo_numerics.packed import NAME, PackedLayout, Schedule, attention_forward, packed_stream, stream_inputs
from grpo_numerics.transfer import Parcel
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from grpo_training.rollouts.rollout import pad_left

Way = Literal["packed", "plain", "alone"]


class Forward:
    """Runs a model's body, or all of it.

    way: how. whole: run the head too, so that logits come in place of hidden states. half: under bf16 autocast.
    rotary_edge: the length from which on rotary frequencies depend on the batch; None: they never do.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.way: Way = "alone"
        self.whole = True
        self.half = False
        AttentionInterface.register(NAME, attention_forward)
        config = model.config.get_text_config(decoder=True)
        self.rotary_edge = rotary_edge(config)
        self._attention_layers = attention_layers(config)

    def rows(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[Sequence[int]]]) -> Tensor:
        """(N, D): row n predicts the n-th completion token (of V logits where the head runs too)."""
        way = self.way
        if self.rotary_edge is not None:
            fresh_rotary(self.model)
            longest = max(
                len(p) + max(map(len, group), default=0) for p, group in zip(prompts, completions, strict=True)
            )
            way = "alone" if longest > self.rotary_edge else way
        run = {"packed": self._packed, "plain": self._plain, "alone": self._alone}[way]
        return run(prompts, completions)

    def autocast(self) -> AbstractContextManager[object]:
        """The precision that the model runs in."""
        return torch.autocast(self.model.device.type, dtype=torch.bfloat16) if self.half else nullcontext()

    def _packed(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[Sequence[int]]]) -> Tensor:
        layout = PackedLayout.build(
            [np.asarray(p, dtype=np.int32) for p in prompts],
            [[np.asarray(c, dtype=np.int32) for c in group] for group in completions],
        )
        schedule = Schedule(layout, self.model.device)
        predicting = Parcel({"rows": layout.predict_rows})
        with self._packed_attention(), packed_stream(schedule) as calls:
            hidden = self._run(**stream_inputs(schedule))[0]
        if calls.count != self._attention_layers:
            raise RuntimeError(
                f"{calls.count} of {self._attention_layers} layers came through the packed attention that the model was set to"
            )
        return hidden[predicting.on(hidden.device)["rows"]]

    @contextmanager
    def _packed_attention(self) -> Generator[None]:
        """The model's own attention samples; the packed one is put in for this forward alone."""
        own = self.model.config._attn_implementation or "eager"
        self.model.set_attn_implementation(NAME)
        try:
            yield
        finally:
            self.model.set_attn_implementation(own)

    def _plain(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[Sequence[int]]]) -> Tensor:
        """Every completion with its own copy of the prompt, prompts padded on the left and completions on the right."""
        device = self.model.device
        rows = [(p, c) for p, group in zip(prompts, completions, strict=True) for c in group]
        prompt_ids, attention, positions = pad_left([p for p, _ in rows], device)
        lengths = torch.tensor([len(c) for _, c in rows], device=device)
        steps = torch.arange(int(lengths.max()), device=device)
        mask = steps < lengths[:, None]
        ids = torch.zeros(mask.shape, dtype=torch.int64, device=device)
        ids[mask] = torch.tensor([token for _, c in rows for token in c], dtype=torch.int64, device=device)
        hidden = self._run(
            input_ids=torch.cat([prompt_ids, ids], dim=1),
            attention_mask=torch.cat([attention, mask.long()], dim=1),
            position_ids=torch.cat([positions, positions[:, -1:] + 1 + steps], dim=1),
        )
        return hidden[:, -len(steps) - 1 : -1][mask]

    def _alone(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[Sequence[int]]]) -> Tensor:
        """Every sequence by itself, whole, as if none had come before: what all else is measured by."""
        rows: list[Tensor] = []
        for prompt, group in zip(prompts, completions, strict=True):
            for completion in group:
                if len(completion):
                    if self.rotary_edge is not None:
                        fresh_rotary(self.model)
                    ids = torch.tensor([[*prompt, *completion]], device=self.model.device)
                    rows.append(self._run(input_ids=ids)[0, len(prompt) - 1 : -1])
        return torch.cat(rows)

    def _run(self, **inputs: Tensor) -> Tensor:
        """Last hidden states (B, T, D), or logits (B, T, V)."""
        body = self.model if self.whole else self.model.base_model
        with self.autocast():
            output = body(**inputs, use_cache=False)
        return output.logits if self.whole else output.last_hidden_state
