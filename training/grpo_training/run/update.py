"""The second half of a step: the policy's forward, the loss over what can be trained on, and the update of the weights.

A completion is left out where its reward was not measured, or reference or teacher could not score it. What is left out
counts in no average. Whether there is a score is known only when it arrives, portion by portion, while the policy computes; so
the averages begin with everything that might be there, and where a score turns out to be missing the pass is done once more.
"""

from __future__ import annotations

import logging

import torch

from grpo_training.config import Correction
from grpo_training.losses.grpo import LossTerms, Totals, mean_metrics
from grpo_training.losses.objective import correction_in_use, portion_loss
from grpo_training.run.parts import Clock, Parts, step_seed
from grpo_training.run.portion import Portion
from grpo_training.run.teaching import earned, forward, learn, taught
from grpo_training.sharding import whole

logger = logging.getLogger(__name__)


class Update:
    """Optimizer steps on one batch of rollouts."""

    def __init__(self, parts: Parts, step: int, portions: list[Portion], clock: Clock) -> None:
        """portions: rewarded; their scores may still be under way."""
        self._parts, self._step, self._clock = parts, step, clock
        self._portions = portions
        self._correction: Correction = correction_in_use(parts.config.loss, foreign=parts.sampler.foreign)

    def run(self) -> dict[str, float]:
        """Every iteration; returns the figures of the last one, and what the first has shown of policy and reference."""
        each = self._parts.config.trainer.gradient_accumulation
        batches = [self._portions[i : i + each] for i in range(0, len(self._portions), each)]
        if len(batches) > 1:
            self._score_old()
        figures: dict[str, float] = {}
        for iteration in range(self._parts.config.trainer.iterations):
            updates: list[dict[str, float]] = []
            terms: list[LossTerms] = []
            for number, batch in enumerate(batches):
                mine, anything = self._differentiate(batch, number, first=iteration == 0)
                terms += mine
                if iteration == 0:
                    for portion in batch:
                        assert portion.old is not None
                        self._parts.watch.saw_terms(portion.old, portion.mask)
                with self._clock("optimizer"):
                    updates.append(self._optimize(anything=anything))
            if iteration == 0:
                figures |= self._seen()
            figures |= mean_metrics(terms, summed=self._parts.world.sum) | _together(updates)
            figures["loss"] /= len(batches)
        self._parts.scheduler.step()
        return figures

    def _score_old(self) -> None:
        """The policy's log-probs before the first of several updates: from the second on it is another."""
        for portion in self._portions:
            with self._clock("forward"), torch.no_grad():
                portion.old = self._parts.world.generate(lambda of=portion.rollout: self._parts.policy.logprobs(of))

    def _differentiate(self, batch: list[Portion], number: int, *, first: bool) -> tuple[list[LossTerms], bool]:
        """Leave the gradients of a batch in place; also whether it has anything to train on."""
        totals = self._totals(batch)
        terms = self._pass(batch, totals, number, first=first)
        if (counted := self._totals(batch)) != totals:
            self._parts.optimizer.zero_grad(set_to_none=True)
            totals = counted
            terms = self._pass(batch, totals, number, first=first)
        return terms, totals[0].tokens > 0

    def _pass(self, batch: list[Portion], totals: list[Totals], number: int, *, first: bool) -> list[LossTerms]:
        """Forward and backward of every portion; the gradients are in place afterwards. number: of the batch."""
        config, world = self._parts.config, self._parts.world
        # The one thing that draws from torch's own generator; a pass that is done again draws the same.
        if first and config.lora is not None and config.lora.dropout > 0:
            torch.manual_seed(step_seed(config.trainer.seed, self._step) + world.rank + number * world.size)
        everyones = world.values if world.size > 1 else None
        terms: list[LossTerms] = []
        for i, (portion, total) in enumerate(zip(batch, totals, strict=True)):
            with self._clock("forward"):
                logprobs, entropies, chosen = world.forward(
                    lambda of=portion: forward(self._parts, of, self._clock), last=i + 1 == len(batch)
                )
            if portion.awaited:
                with self._clock("reference_wait"):
                    portion.collect()
            learn(portion, self._clock)
            if portion.old is None:
                portion.old = logprobs.detach()
            with self._clock("backward"):
                data = portion.data(logprobs, entropies, earned=earned(portion, config.distillation))
                mine = portion_loss(data, config.loss, total, correction=self._correction, everyones=everyones)
                terms.append(taught(mine, portion, chosen, config.distillation, total))
                world.backward(terms[-1].loss)
        return terms

    def _totals(self, batch: list[Portion]) -> list[Totals]:
        """What contributes to the update, over all processes, for each portion."""
        mine = [p.mask.sum() for p in batch] + [p.usable.sum() for p in batch]
        counted = [int(n) for n in self._parts.world.sum(torch.stack(mine))]
        tokens, sequences = counted[: len(batch)], counted[len(batch) :]
        return [
            Totals(
                sequences=sum(sequences),
                tokens=sum(tokens),
                portions=sum(n > 0 for n in tokens),
                max_tokens=self._parts.config.rollout.max_new_tokens,
                portion_tokens=here,
            )
            for here in tokens
        ]

    def _seen(self) -> dict[str, float]:
        """What the first iteration has shown of sampler, policy and reference."""
        parts, world = self._parts, self._parts.world
        gap = 0.0
        for portion in self._portions:
            assert portion.old is not None
            # With the policy as its own sampler the weights are the same: a gap is the error of one of the two.
            gap = max(gap, float((portion.old - portion.rollout.logprobs).abs().max()))
        figures = world.maxima({"policy/sampler_gap": gap})
        if parts.reference:
            missing = torch.tensor([sum(portion.unscored for portion in self._portions)])
            figures["reference/unscored"] = float(world.sum(missing)[0])
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


def _together(updates: list[dict[str, float]]) -> dict[str, float]:
    """Figures of several updates as one step's: the mean norm, the rate, and skipped only where none changed a weight."""
    norms = [update["policy/grad_norm"] for update in updates]
    return {
        "policy/grad_norm": sum(norms) / len(norms),
        "policy/lr": updates[0]["policy/lr"],
        "policy/skipped": min(update["policy/skipped"] for update in updates),
    }
