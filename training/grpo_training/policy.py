"""The policy's log-probs of sampled completions, with gradient: each prompt computed once per group.

Two ways through the model, the same numbers: `shared` runs the prompts once and lets every completion continue from
the cached keys and values (gradients flow back through them), `plain` runs prompt and completion together, row by row.
The first is used where a probe at start finds it equal to the second; the head never forms (tokens x vocabulary)
logits where the probe finds that the fused one is the model's own.
"""

from __future__ import annotations

import logging
from typing import Literal

import torch
from grpo_client.protocol import Normalizer
from grpo_numerics import HeadSpec, fused_logprobs, token_logprobs
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel

from grpo_training.rollout import Rollout, pad_left

logger = logging.getLogger(__name__)

Way = Literal["shared", "plain"]


class Policy:
    """A causal language model, seen as log p(completion | prompt)."""

    def __init__(self, model: PreTrainedModel, *, temperature: float = 1.0, normalizer: Normalizer = "softmax") -> None:
        """Probe the model once: which way its prompts can be shared, and whether its head can be fused."""
        self.model = model
        self.temperature = temperature
        self.normalizer: Normalizer = normalizer
        self.spec = head_spec(model)
        self._head = getattr(model.get_output_embeddings(), "weight", None)  # (V, D)
        self.fused = True
        self.way: Way = "plain"
        self._probe()

    def logprobs(self, rollout: Rollout) -> Tensor:
        """(S, C) fp32 log-probs of the completion tokens under temperature and normalizer; 0 where masked."""
        hidden = self._hidden_shared(rollout) if self.way == "shared" else self._hidden_plain(rollout)
        rows, targets = hidden[rollout.mask], rollout.ids[rollout.mask]  # (N, D), (N,)
        if self.fused:
            assert self._head is not None
            scores = fused_logprobs(
                rows,
                self._head,
                targets,
                spec=self.spec,
                temperature=self.temperature,
                normalizer=self.normalizer,
            )
        else:
            scores = token_logprobs(rows, targets, temperature=self.temperature, normalizer=self.normalizer)
        return torch.zeros(rollout.mask.shape, device=scores.device).masked_scatter(rollout.mask, scores)

    def _hidden_shared(self, rollout: Rollout) -> Tensor:
        """(S, C, D): row t is what predicts completion token t (logits in place of D where the head is not fused)."""
        prompt_ids, attention, positions = pad_left(rollout.prompts, rollout.ids.device)
        cache = DynamicCache()
        last = self._run(prompt_ids, attention, positions, cache)[:, -1:]
        last = last.repeat_interleave(rollout.group_size, 0)
        if rollout.ids.shape[1] == 1:
            return last
        cache.batch_repeat_interleave(rollout.group_size)
        steps = torch.arange(1, rollout.ids.shape[1], device=positions.device)
        rest = self._run(
            rollout.ids[:, :-1],
            torch.cat([attention.repeat_interleave(rollout.group_size, 0), rollout.mask[:, :-1].long()], dim=1),
            positions[:, -1:].repeat_interleave(rollout.group_size, 0) + steps,
            cache,
        )
        return torch.cat([last, rest], dim=1)

    def _hidden_plain(self, rollout: Rollout) -> Tensor:
        """(S, C, D), every row with its own copy of the prompt."""
        prompt_ids, attention, positions = (
            t.repeat_interleave(rollout.group_size, 0) for t in pad_left(rollout.prompts, rollout.ids.device)
        )
        steps = torch.arange(1, rollout.ids.shape[1] + 1, device=positions.device)
        hidden = self._run(
            torch.cat([prompt_ids, rollout.ids], dim=1),
            torch.cat([attention, rollout.mask.long()], dim=1),
            torch.cat([positions, positions[:, -1:] + steps], dim=1),
            None,
        )
        return hidden[:, -rollout.ids.shape[1] - 1 : -1]

    def _run(self, ids: Tensor, attention: Tensor, positions: Tensor, cache: DynamicCache | None) -> Tensor:
        """Last hidden states (B, T, D), or logits (B, T, V) where the head is not fused."""
        body = self.model.base_model if self.fused else self.model
        output = body(
            input_ids=ids,
            attention_mask=attention,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        )
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

        self.fused = self.spec is not None
        self.fused = self.fused and agrees()
        self.way = "shared"
        self.way = "shared" if agrees() else "plain"
        logger.info(
            "policy %s: prompts %s, head %s",
            type(self.model).__name__,
            "computed once per group" if self.way == "shared" else "repeated for each completion",
            "fused" if self.fused else "the model's own",
        )


def head_spec(model: PreTrainedModel) -> HeadSpec | None:
    """What the model does between its output embedding and its logits; None when it has no such embedding."""
    head = model.get_output_embeddings()
    if head is None or not isinstance(getattr(head, "weight", None), Tensor):
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
