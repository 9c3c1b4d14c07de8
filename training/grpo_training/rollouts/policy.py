"""The policy's log-probs of sampled completions, with gradient: each prompt computed once per group, nothing padded.

How they go through the model is in `forward`. Its packed way is used where a probe at start finds it equal to the model's
own forward, on the groups and by the standard that the server has, too; the head never forms (tokens x vocabulary) logits
where the probe finds that the fused one is the model's own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from grpo_client.protocol import FloatArray, Normalizer
from grpo_numerics import HeadSpec, entropy, fused_logprobs, score_rows, token_logprobs
from grpo_numerics.head.chosen import ChosenLogprobs, chosen_logprobs, fused_chosen_logprobs
from grpo_numerics.model_parts import (
    head_spec,
    longest_sequence,
    longest_window,
    output_head,
    same_scores,
    trial_groups,
)
from torch import Tensor
from transformers import PreTrainedModel

from grpo_training.rollouts.forward import Forward, Way
from grpo_training.rollouts.rollout import Rollout

logger = logging.getLogger(__name__)


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
        self._forward = Forward(model)
        config = model.config.get_text_config(decoder=True)
        self._logit_scale, self._softcap = 1.0, getattr(config, "final_logit_softcapping", None)
        self._probe()
        self._forward.half = precision == "bf16"

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

    def scores_at(
        self, rollout: Rollout, ids: Callable[[], Tensor], *, temperature: float, entropies: bool = False
    ) -> tuple[Tensor, Tensor | None, ChosenLogprobs]:
        """As `scores`, and of the N tokens in `loss_mask`, row by row, the log-probs of (N, k) chosen ids at `temperature`.

        ids: called when the model's body is through; it may wait for what another process finds out.
        """
        mask = rollout.loss_mask
        rows = self._loss_rows(rollout)
        chosen = ids()
        scores, uncertainty = self._scored(rows, rollout.ids[mask], entropies)
        if self.fused:
            hidden, head, spec = self._head(rows)
            at = fused_chosen_logprobs(
                hidden, head, chosen, spec=spec, temperature=temperature, normalizer=self.normalizer
            )
        else:
            logits = rows[:, : self.vocab_size]
            at = chosen_logprobs(logits, chosen, temperature=temperature, normalizer=self.normalizer)
        return _spread(scores, mask), None if uncertainty is None else _spread(uncertainty, mask), at

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
        """(N, D) as `Forward.rows`, of the N tokens in `loss_mask`."""
        rows = self._forward.rows(rollout.prompts, rollout.completions())
        return rows if rollout.by_policy is None else rows[rollout.by_policy[rollout.mask]]

    def _scored(self, rows: Tensor, targets: Tensor, entropies: bool = False) -> tuple[Tensor, Tensor | None]:
        """(N,) log-probs of targets (N,), and entropies, of what `Forward.rows` gives."""
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
        if self._forward.half:  # products in bf16, sums over the vocabulary in fp32
            rows, head = rows.bfloat16(), head.bfloat16()
        return rows, head, HeadSpec(bias, self._logit_scale, self._softcap)

    def autocast(self) -> AbstractContextManager[object]:
        """The precision that the model runs in, for whoever else runs it (the sampler)."""
        return self._forward.autocast()

    @property
    def way(self) -> Way:
        """How prompts and completions go through the model: see `forward`."""
        return self._forward.way

    @way.setter
    def way(self, way: Way) -> None:
        self._forward.way = way

    @property
    def fused(self) -> bool:
        """Whether the head is the fused one, which forms no (tokens x vocabulary) logits."""
        return not self._forward.whole

    @fused.setter
    def fused(self, fused: bool) -> None:
        self._forward.whole = not fused

    @torch.no_grad()
    def _probe(self) -> None:
        """Compare ways and heads with the model's own answer, sequence by sequence; keep what agrees."""
        config = self.model.config.get_text_config(decoder=True)
        longest = min(longest_sequence(config), self._forward.rotary_edge or longest_sequence(config))
        vocab = len(next(self.model.get_input_embeddings().parameters()))
        groups = trial_groups(vocab, longest, longest_window(config))
        prompts, completions = [p.tolist() for p, _ in groups], [[c.tolist() for c in group] for _, group in groups]
        targets = torch.tensor([t for group in completions for c in group for t in c], device=self.model.device)
        # the standard is one of plain log-probs: temperature and normalizer come behind both heads alike
        asked = self.temperature, self.normalizer
        self.temperature, self.normalizer = 1.0, "softmax"

        def scores() -> FloatArray:
            return self._scored(self._forward.rows(prompts, completions), targets)[0].double().cpu().numpy()

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
