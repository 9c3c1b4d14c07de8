"""The second half of a step: the policy's forward, the loss over what can be trained on, and the update of the weights.

A completion is left out where its reward was not measured or the reference could not score it. What is left out counts in
no average. Whether there is a score is known only when it arrives, portion by portion, while the policy computes; so the
averages begin with everything that might be there, and where a score turns out to be missing the pass is done once more.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from grpo_training.losses.grpo import LossTerms, Totals, mean_metrics
from grpo_training.losses.objective import PortionData, correction_in_use, needs_entropies, portion_loss
from grpo_training.rollouts.reference import Pending
from grpo_training.rollouts.rollout import Rollout
from grpo_training.run.parts import Clock, Parts, Scores, step_seed
from grpo_training.sharding import whole

logger = logging.getLogger(__name__)


class Update:
    """Optimizer steps on one batch of rollouts."""

    def __init__(
        self,
        parts: Parts,
        step: int,
        portions: list[Rollout],
        advantages: Tensor,
        kept: Tensor,
        pending: list[Pending] | None,
        scores: list[Scores],
        clock: Clock,
    ) -> None:
        """advantages: (S,). kept: (S,) bool, where the reward was measured. scores: those that have been collected."""
        self._parts, self._step, self._clock = parts, step, clock
        self._portions, self._pending, self._scores = portions, pending, scores
        self._advantages = advantages.chunk(len(portions))
        self._kept = kept.chunk(len(portions))
        self._old: list[Tensor | None] = [None] * len(portions)
        self._gap = torch.zeros(())

    def run(self) -> dict[str, float]:
        """Every iteration; returns the figures of the last one."""
        parts, world = self._parts, self._parts.world
        figures: dict[str, float] = {}
        for iteration in range(parts.config.trainer.iterations):
            totals = self._totals()
            terms = self._pass(iteration, totals)
            if (counted := self._totals()) != totals:
                parts.optimizer.zero_grad(set_to_none=True)
                totals = counted
                terms = self._pass(iteration, totals)
            if iteration == 0:
                figures |= self._seen()
            with self._clock("optimizer"):
                figures |= mean_metrics(terms, summed=world.sum) | self._optimize(anything=totals[0].tokens > 0)
        parts.scheduler.step()
        return figures

    def _pass(self, iteration: int, totals: list[Totals]) -> list[LossTerms]:
        """Forward and backward of every portion; the gradients are in place afterwards."""
        config, world, clock = self._parts.config, self._parts.world, self._clock
        # The one thing that draws from torch's own generator; a pass that is done again draws the same.
        if iteration == 0 and config.lora is not None and config.lora.dropout > 0:
            torch.manual_seed(step_seed(config.trainer.seed, self._step) + world.rank)
        correction = correction_in_use(config.loss, foreign=self._parts.sampler.foreign)
        terms: list[LossTerms] = []
        for i, portion in enumerate(self._portions):
            with clock("forward"):
                entropies_too = needs_entropies(config.loss) or portion.entropy is None
                logprobs, entropies = world.forward(
                    lambda of=portion, too=entropies_too: self._parts.policy.scores(of, entropies=too),
                    last=i + 1 == len(self._portions),
                )
            if self._pending and self._scores[i] is None:
                with clock("reference_wait"):
                    self._scores[i] = self._pending[i].collect()
            if iteration == 0:
                # With the policy as its own sampler the weights are the same: a gap is the error of one of the two.
                self._gap = torch.maximum(self._gap, (logprobs.detach() - portion.logprobs).abs().max().cpu())
                self._old[i] = logprobs.detach()
            reference, _ = self._scores[i] or (None, None)
            before = self._old[i]
            assert before is not None
            data = PortionData(
                logprobs=logprobs,
                entropies=entropies,
                old=before,
                sampler=portion.logprobs,
                reference=reference,
                mask=self._mask(i),
                advantages=self._advantages[i],
            )
            with clock("backward"):
                everyones = world.values if world.size > 1 else None
                terms.append(portion_loss(data, config.loss, totals[i], correction=correction, everyones=everyones))
                world.backward(terms[-1].loss)
        return terms

    def _used(self, i: int) -> Tensor:
        """(S,) bool: which completions of a portion are trained on, as far as is known."""
        scores = self._scores[i]
        return self._kept[i] if scores is None else self._kept[i] & scores[1]

    def _mask(self, i: int) -> Tensor:
        return self._portions[i].mask & self._used(i)[:, None]

    def _totals(self) -> list[Totals]:
        """What contributes to the step, over all processes, for each portion."""
        places = range(len(self._portions))
        counts = [self._mask(i).sum() for i in places] + [self._used(i).sum() for i in places]
        counted = [int(n) for n in self._parts.world.sum(torch.stack(counts))]
        tokens, sequences = counted[: len(places)], counted[len(places) :]
        return [
            Totals(
                sequences=sum(sequences),
                tokens=sum(tokens),
                portions=sum(n > 0 for n in tokens),
                max_tokens=self._parts.config.rollout.max_new_tokens,
                portion_tokens=tokens[i],
            )
            for i in places
        ]

    def _seen(self) -> dict[str, float]:
        """What the first iteration has shown of sampler, policy and reference."""
        world = self._parts.world
        for i, logprobs in enumerate(self._old):
            assert logprobs is not None
            self._parts.watch.saw_terms(logprobs, self._mask(i))
        figures = world.maxima({"policy/sampler_gap": float(self._gap)})
        if self._pending:
            missing = sum(int((~scores[1]).sum()) for scores in self._scores if scores is not None)
            figures["reference/unscored"] = float(world.sum(torch.tensor([missing]))[0])
        return figures

    def _optimize(self, *, anything: bool) -> dict[str, float]:
        """Clip, step, clear. A step whose gradient is not finite, or that has nothing to train on, is left out."""
        parts = self._parts
        limit = parts.config.optimizer.max_grad_norm
        parameters = list(parts.loaded.model.parameters())
        norm = whole(torch.nn.utils.clip_grad_norm_(parameters, float("inf") if limit is None else limit))
        usable = anything and bool(torch.isfinite(norm))
        lr = float(parts.optimizer.param_groups[0]["lr"])
        if usable:
            parts.watch.before_update(parameters)
            parts.optimizer.step()
            parts.watch.after_update()
        elif parts.world.main:
            why = "its gradient is not finite" if anything else "no completion has both a reward and a score"
            logger.warning("step %d changes no weight: %s", self._step + 1, why)
        parts.optimizer.zero_grad(set_to_none=True)
        if not usable:
            parts.optimizer.step()  # without gradients it does nothing, and the scheduler wants to see one before its own
        return {"policy/grad_norm": float(norm), "policy/lr": lr, "policy/skipped": float(not usable)}
