"""The policy's log-probs of sampled completions, with gradient: each prompt computed once per group, nothing padded.

Two ways through the model, the same numbers: `packed` runs prompts and completions as one flat stream, equal completions
once, by the very attention that the reference server has; `plain` runs prompt and completion together, padded row by row.
The first is used where a probe at start finds it equal to the second; the head never forms (tokens x vocabulary)
logits where the probe finds that the fused one is the model's own.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from grpo_client.protocol import Normalizer
from grpo_numerics import HeadSpec, entropy, fused_logprobs, score_rows, token_logprobs
from grpo_numerics.packed import NAME, PackedLayout, Schedule, attention_forward, packed_stream, stream_inputs
from torch import Tensor
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

from grpo_training.rollout import Rollout, pad_left

logger = logging.getLogger(__name__)

Way = Literal["packed", "plain"]


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
        self.fused = True
        self.way: Way = "plain"
        self._half = False
        self._probe()
        self._half = precision == "bf16"

    def logprobs(self, rollout: Rollout) -> Tensor:
        """(S, C) fp32 log-probs of the completion tokens under temperature and normalizer; 0 where masked."""
        return self.scores(rollout)[0]

    def scores(self, rollout: Rollout, *, entropies: bool = False) -> tuple[Tensor, Tensor | None]:
        """The log-probs, and where asked for the entropies of the distributions: (S, C) fp32, nats, 0 where masked.

        Both carry gradient, and both come from one pass over the head.
        """
        rows = self._packed(rollout) if self.way == "packed" else self._plain(rollout)[rollout.mask]  # (N, D)
        targets = rollout.ids[rollout.mask]  # (N,)
        under = {"temperature": self.temperature, "normalizer": self.normalizer}
        uncertainty: Tensor | None = None
        if self.fused:
            rows, head, spec = self._head(rows)
            if entropies:
                scores, uncertainty = fused_logprobs(rows, head, targets, spec=spec, return_entropy=True, **under)
            else:
                scores = fused_logprobs(rows, head, targets, spec=spec, **under)
        else:
            rows = rows[:, : self.vocab_size]
            scores = token_logprobs(rows, targets, **under)
            uncertainty = entropy(rows, **under) if entropies else None
        return _spread(scores, rollout.mask), None if uncertainty is None else _spread(uncertainty, rollout.mask)

    @torch.no_grad()
    def max_logit(self, rollout: Rollout) -> float:
        """The largest logit over all completion tokens, before temperature and normalizer. A forward of its own."""
        rows = self._packed(rollout) if self.way == "packed" else self._plain(rollout)[rollout.mask]
        if not self.fused:
            return float(rows[:, : self.vocab_size].max())
        rows, head, spec = self._head(rows)
        # Under softmax at temperature 1 a logit is its log-prob plus the log-sum-exp: so no row of logits is formed.
        best = score_rows(rows, head, rollout.ids[rollout.mask], spec=spec, top_k=1, want={"logsumexp"})
        assert best.top_logprobs is not None
        assert best.logsumexp is not None
        return float((best.top_logprobs[:, 0] + best.logsumexp).max())

    def _head(self, rows: Tensor) -> tuple[Tensor, Tensor, HeadSpec | None]:
        """Rows (N, D) and weight (V, D) as they are to be multiplied, and what the head does beside.

        Looked up each time: sharded weights are whole only inside a forward, and then are other tensors.
        """
        head = getattr(self.model.get_output_embeddings(), "weight", None)
        assert head is not None
        if self._half:  # products in bf16, sums over the vocabulary in fp32
            rows, head = rows.bfloat16(), head.bfloat16()
        spec = head_spec(self.model)
        if self.vocab_size is not None:
            head = head[: self.vocab_size]
            bias = None if spec is None or spec.bias is None else spec.bias[: self.vocab_size]
            spec = None if spec is None else replace(spec, bias=bias)
        return rows, head, spec

    def autocast(self) -> AbstractContextManager[object]:
        """The precision that the model runs in, for whoever else runs it (the sampler)."""
        return torch.autocast(self.model.device.type, dtype=torch.bfloat16) if self._half else nullcontext()

    def _packed(self, rollout: Rollout) -> Tensor:
        """(N, D): row n is what predicts the n-th completion token (logits in place of D where the head is not fused)."""
        layout = PackedLayout.build(
            [np.asarray(p, dtype=np.int32) for p in rollout.prompts],
            [[np.asarray(c, dtype=np.int32) for c in group] for group in rollout.completions()],
        )
        schedule = Schedule(layout, rollout.ids.device)
        with self._packed_attention(), packed_stream(schedule) as calls:
            hidden = self._run(**stream_inputs(schedule))[0]
        if not calls.count:
            raise RuntimeError("the model took the packed attention by name and did not call it")
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

    def _plain(self, rollout: Rollout) -> Tensor:
        """(S, C, D), every row with its own copy of the prompt."""
        prompt_ids, attention, positions = (
            t.repeat_interleave(rollout.group_size, 0) for t in pad_left(rollout.prompts, rollout.ids.device)
        )
        steps = torch.arange(1, rollout.ids.shape[1] + 1, device=positions.device)
        hidden = self._run(
            input_ids=torch.cat([prompt_ids, rollout.ids], dim=1),
            attention_mask=torch.cat([attention, rollout.mask.long()], dim=1),
            position_ids=torch.cat([positions, positions[:, -1:] + steps], dim=1),
        )
        return hidden[:, -rollout.ids.shape[1] - 1 : -1]

    def _run(self, **inputs: Tensor) -> Tensor:
        """Last hidden states (B, T, D), or logits (B, T, V) where the head is not fused."""
        body = self.model.base_model if self.fused else self.model
        with self.autocast():
            output = body(**inputs, use_cache=False)
        return output.last_hidden_state if self.fused else output.logits

    @torch.no_grad()
    def _probe(self) -> None:
        """Compare both ways and both heads on a small ragged batch; keep what agrees with the model's own answer."""
        rollout = _probe_rollout(self.model)
        self.fused = False
        self.way = "plain"
        truth = self.logprobs(rollout)
        # Reordered sums move a score by about the square root of the hidden size in units of the last place.
        tolerance = 64 * torch.finfo(self.model.dtype).eps * float(truth.abs().max().clamp(min=1.0))

        def agrees() -> bool:
            try:
                return bool((self.logprobs(rollout) - truth).abs().max() <= tolerance)
            except (AttributeError, TypeError, RuntimeError, ValueError, NotImplementedError) as error:
                logger.info("probe of %s: %s", type(self.model).__name__, error)
                return False

        self.fused = head_spec(self.model) is not None
        self.fused = self.fused and agrees()
        self.way = "packed"
        self.way = "packed" if agrees() else "plain"
        logger.info(
            "policy %s: prompts %s, head %s",
            type(self.model).__name__,
            "computed once per group" if self.way == "packed" else "repeated for each completion",
            "fused" if self.fused else "the model's own",
        )


def _spread(values: Tensor, mask: Tensor) -> Tensor:
    """(N,) values of the unmasked places, as (S, C) with 0 elsewhere."""
    return torch.zeros(mask.shape, device=values.device).masked_scatter(mask, values)


def head_spec(model: PreTrainedModel) -> HeadSpec | None:
    """What the model does between its output embedding and its logits; None when it has no plain one."""
    head = model.get_output_embeddings()
    if head is None or hasattr(head, "base_layer") or not isinstance(getattr(head, "weight", None), Tensor):
        return None
    config = model.config.get_text_config(decoder=True)
    return HeadSpec(
        bias=getattr(head, "bias", None),
        logit_scale=_logit_scale(config),
        softcap=getattr(config, "final_logit_softcapping", None),
    )


def _logit_scale(config: PretrainedConfig) -> float:
    """Cohere multiplies the logits by `logit_scale`, Granite divides them by `logits_scaling`."""
    if (scale := getattr(config, "logit_scale", None)) is not None:
        return float(scale)
    return 1.0 / float(getattr(config, "logits_scaling", None) or 1.0)


def _probe_rollout(model: PreTrainedModel) -> Rollout:
    """Two prompts of unlike length with two ragged completions each, ids spread over the vocabulary."""
    vocab = model.config.get_text_config().vocab_size
    draw = torch.Generator().manual_seed(0)
    prompts = [torch.randint(vocab, (n,), generator=draw).tolist() for n in (7, 3)]
    ids = torch.randint(vocab, (4, 5), generator=draw).to(model.device)
    lengths = torch.tensor([5, 2, 1, 4], device=model.device)
    mask = torch.arange(5, device=model.device) < lengths[:, None]
    zeros = torch.zeros(4, 5, device=model.device)
    return Rollout(prompts, 2, ids.where(mask, 0), mask, zeros, zeros, mask[:, 0])
