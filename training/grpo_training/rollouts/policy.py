"""The policy's log-probs of sampled completions, with gradient: each prompt computed once per group, nothing padded.

Three ways through the model, the same numbers: `packed` runs prompts and completions as one flat stream, equal completions
once, by the very attention that the reference server has; `plain` runs prompt and completion together, padded row by row;
`alone` runs every sequence by itself, for models whose rotary frequencies depend on the longest sequence of a batch.
The first is used where a probe at start finds it equal to the model's own forward, on the groups and by the standard that the
server has, too; the head never forms (tokens x vocabulary) logits where the probe finds that the fused one is the model's own.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import numpy as np
import torch
from grpo_client.protocol import FloatArray, Normalizer
from grpo_numerics import HeadSpec, entropy, fused_logprobs, score_rows, token_logprobs
from grpo_numerics.model_parts import (
    attention_layers,
    fresh_rotary,
    head_spec,
    longest_sequence,
    longest_window,
    output_head,
    rotary_edge,
    same_scores,
    trial_groups,
)
from grpo_numerics.packed import NAME, PackedLayout, Schedule, attention_forward, packed_stream, stream_inputs
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from grpo_training.rollouts.rollout import Rollout, pad_left

logger = logging.getLogger(__name__)

Way = Literal["packed", "plain", "alone"]


class Policy:
    """A causal language model, seen as log p(completion | prompt)."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        temperature: float = 1.0,
        normalizer: Normalizer = "softmax",
        precision: Literal["full", "bf16"] = "full",
    ) -> None:
        """Probe the model once: which way its prompts can be shared, and whether its head can be fused.

        precision: bf16 runs the model under autocast. The probe does not: there rounding would hide what it looks for.
        """
        self.model = model
        self.temperature = temperature
        self.normalizer: Normalizer = normalizer
        self.vocab_size: int | None = None
        """Ids from here on have no probability, and are no part of what is summed over; None: the model has no such."""
        AttentionInterface.register(NAME, attention_forward)
        config = model.config.get_text_config(decoder=True)
        self._attention_layers = attention_layers(config)
        self._rotary_edge = rotary_edge(config)
        self._logit_scale, self._softcap = 1.0, getattr(config, "final_logit_softcapping", None)
        self._half = False
        self.fused = False
        self.way: Way = "alone"
        self._probe()
        self._half = precision == "bf16"

    def logprobs(self, rollout: Rollout) -> Tensor:
        """(S, C) fp32 log-probs of the tokens in `loss_mask` under temperature and normalizer; 0 elsewhere."""
        return self.scores(rollout)[0]

    def scores(self, rollout: Rollout, *, entropies: bool = False) -> tuple[Tensor, Tensor | None]:
        """The log-probs, and where asked for the entropies of the distributions: (S, C) fp32, nats, 0 outside `loss_mask`.

        Both carry gradient, and both come from one pass over the head. Tokens that the policy did not write are context:
        they never reach the head.
        """
        mask = rollout.loss_mask
        scores, uncertainty = self._scored(self._loss_rows(rollout), rollout.ids[mask], entropies)
        return _spread(scores, mask), None if uncertainty is None else _spread(uncertainty, mask)

    @torch.no_grad()
    def max_logit(self, rollout: Rollout) -> float:
        """The largest logit over the tokens in `loss_mask`, before temperature and normalizer. A forward of its own."""
        rows = self._loss_rows(rollout)
        if not self.fused:
            return float(rows[:, : self.vocab_size].max())
        rows, head, spec = self._head(rows)
        # Under softmax at temperature 1 a logit is its log-prob plus the log-sum-exp: so no row of logits is formed.
        best = score_rows(rows, head, rollout.ids[rollout.loss_mask], spec=spec, top_k=1, want={"logsumexp"})
        assert best.top_logprobs is not None
        assert best.logsumexp is not None
        return float((best.top_logprobs[:, 0] + best.logsumexp).max())

    def _loss_rows(self, rollout: Rollout) -> Tensor:
        """(N, D) as `_rows`, of the N tokens in `loss_mask`."""
        rows = self._rows(rollout.prompts, rollout.completions())
        return rows if rollout.by_policy is None else rows[rollout.by_policy[rollout.mask]]

    def _scored(self, rows: Tensor, targets: Tensor, entropies: bool = False) -> tuple[Tensor, Tensor | None]:
        """(N,) log-probs of targets (N,), and entropies, of what `_rows` gives."""
        under = {"temperature": self.temperature, "normalizer": self.normalizer}
        if not self.fused:
            rows = rows[:, : self.vocab_size]
            return token_logprobs(rows, targets, **under), entropy(rows, **under) if entropies else None
        rows, head, spec = self._head(rows)
        if entropies:
            return fused_logprobs(rows, head, targets, spec=spec, return_entropy=True, **under)
        return fused_logprobs(rows, head, targets, spec=spec, **under), None

    def _head(self, rows: Tensor) -> tuple[Tensor, Tensor, HeadSpec]:
        """Rows (N, D) and weight (V, D) as they are to be multiplied, and what the head does beside.

        Looked up each time: sharded weights are whole only inside a forward, and then are other tensors.
        """
        layer: Any = output_head(self.model)
        assert layer is not None
        head, bias = layer.weight, getattr(layer, "bias", None)
        if self.vocab_size is not None:
            head, bias = head[: self.vocab_size], None if bias is None else bias[: self.vocab_size]
        if self._half:  # products in bf16, sums over the vocabulary in fp32
            rows, head = rows.bfloat16(), head.bfloat16()
        return rows, head, HeadSpec(bias, self._logit_scale, self._softcap)

    def autocast(self) -> AbstractContextManager[object]:
        """The precision that the model runs in, for whoever else runs it (the sampler)."""
        return torch.autocast(self.model.device.type, dtype=torch.bfloat16) if self._half else nullcontext()

    def _rows(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[Sequence[int]]]) -> Tensor:
        """(N, D): row n predicts the n-th completion token (logits in place of D where the head is not fused)."""
        way = self.way
        if self._rotary_edge is not None:
            fresh_rotary(self.model)
            longest = max(
                len(p) + max(map(len, group), default=0) for p, group in zip(prompts, completions, strict=True)
            )
            way = "alone" if longest > self._rotary_edge else way
        run = {"packed": self._packed, "plain": self._plain, "alone": self._alone}[way]
        return run(prompts, completions)

    def _packed(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[Sequence[int]]]) -> Tensor:
        layout = PackedLayout.build(
            [np.asarray(p, dtype=np.int32) for p in prompts],
            [[np.asarray(c, dtype=np.int32) for c in group] for group in completions],
        )
        schedule = Schedule(layout, self.model.device)
        with self._packed_attention(), packed_stream(schedule) as calls:
            hidden = self._run(**stream_inputs(schedule))[0]
        if calls.count != self._attention_layers:
            raise RuntimeError(
                f"{calls.count} of {self._attention_layers} layers came through the packed attention that the model was set to"
            )
        return hidden[torch.from_numpy(layout.predict_rows).to(hidden.device)]

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
                    if self._rotary_edge is not None:
                        fresh_rotary(self.model)
                    ids = torch.tensor([[*prompt, *completion]], device=self.model.device)
                    rows.append(self._run(input_ids=ids)[0, len(prompt) - 1 : -1])
        return torch.cat(rows)

    def _run(self, **inputs: Tensor) -> Tensor:
        """Last hidden states (B, T, D), or logits (B, T, V) where the head is not fused."""
        body = self.model.base_model if self.fused else self.model
        with self.autocast():
            output = body(**inputs, use_cache=False)
        return output.last_hidden_state if self.fused else output.logits

    @torch.no_grad()
    def _probe(self) -> None:
        """Compare ways and heads with the model's own answer, sequence by sequence; keep what agrees."""
        config = self.model.config.get_text_config(decoder=True)
        longest = min(longest_sequence(config), self._rotary_edge or longest_sequence(config))
        vocab = len(next(self.model.get_input_embeddings().parameters()))
        groups = trial_groups(vocab, longest, longest_window(config))
        prompts, completions = [p.tolist() for p, _ in groups], [[c.tolist() for c in group] for _, group in groups]
        targets = torch.tensor([t for group in completions for c in group for t in c], device=self.model.device)
        # the standard is one of plain log-probs: temperature and normalizer come behind both heads alike
        asked = self.temperature, self.normalizer
        self.temperature, self.normalizer = 1.0, "softmax"

        def scores() -> FloatArray:
            return self._scored(self._rows(prompts, completions), targets)[0].double().cpu().numpy()

        truth = scores()

        def agrees() -> bool:
            try:
                return same_scores(scores(), truth, self.model.dtype)
            except (AttributeError, TypeError, RuntimeError, ValueError, NotImplementedError) as error:
                logger.info("probe of %s: %s", type(self.model).__name__, error)
                return False

        self.fused = self._reads_head()
        self.fused = self.fused and agrees()
        self.way = "packed"
        if not agrees():
            self.way = "plain"
            self.way = "plain" if agrees() else "alone"
        self.temperature, self.normalizer = asked
        logger.info(
            "policy %s: %s, head %s",
            type(self.model).__name__,
            {
                "packed": "prompts computed once per group",
                "plain": "prompts repeated for each completion",
                "alone": "sequences one by one",
            }[self.way],
            "fused" if self.fused else "the model's own",
        )

    def _reads_head(self) -> bool:
        """Whether the model has a head that can be fused; then what it does beside its product is known."""
        head = output_head(self.model)
        if head is None:
            return False
        try:
            self._logit_scale = head_spec(self.model, self.model.base_model, head).logit_scale
        except (AttributeError, TypeError, RuntimeError, ValueError, NotImplementedError) as error:
            logger.info("head of %s: %s", type(self.model).__name__, error)
            return False
        return True


def _spread(values: Tensor, mask: Tensor) -> Tensor:
    """(N,) values of the unmasked places, as (S, C) with 0 elsewhere."""
    return torch.zeros(mask.shape, device=values.device).masked_scatter(mask, values)
