"""`CollapseMonitor` around the steps of a run, at the configured interval: figures for the metrics, one warning.

On a step that is watched the gradient and the weights are seen around the optimizer's step, and the policy is run once
more for its largest logit, which the fused head never forms. Steps between cost nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

from grpo_client.protocol import Normalizer
from torch import Tensor

from grpo_training.collapse import CollapseMonitor
from grpo_training.config import CollapseConfig
from grpo_training.losses.masks import boolean_mask
from grpo_training.rollouts.policy import Policy
from grpo_training.rollouts.rollout import Rollout

logger = logging.getLogger(__name__)


class CollapseWatch:
    """Told the number of each step as it begins; between `begin` and `figures` it measures, or does nothing."""

    def __init__(self, config: CollapseConfig, *, normalizer: Normalizer) -> None:
        self._config = config
        self._monitor = CollapseMonitor(normalizer=normalizer)
        self._watching = False
        self._step = 0
        self._warned = False

    def begin(self, step: int, policy: Policy, portions: Sequence[Rollout]) -> None:
        """Step `step` (from 0) is about to train on these portions."""
        self._step = step
        self._watching = self._config.every > 0 and (step + 1) % self._config.every == 0
        if self._watching:
            self._monitor.saw_max_logit(max(policy.max_logit(portion) for portion in portions))

    def saw_terms(self, logprobs: Tensor, mask: Tensor) -> None:
        """logprobs: (S, C) of the policy; their zeros are loss terms that have been rounded away. mask: (S, C), what is
        trained on."""
        if self._watching:
            self._monitor.saw_terms(logprobs[boolean_mask(mask, logprobs.shape)])

    def before_update(self, parameters: Iterable[Tensor]) -> None:
        """The gradients are in place."""
        if self._watching:
            self._monitor.before_step(parameters)

    def after_update(self) -> None:
        """The optimizer has stepped."""
        if self._watching:
            self._monitor.after_step()

    def figures(self, summed: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """`collapse/zero_share`, `max_logit`, `cosine` and `norm_growth`; empty on a step that was not watched.

        summed: adds a (N,) vector up over processes, so that the share is of all their terms. A collective then.
        """
        if not self._watching:
            return {}
        if summed is not None:
            self._monitor.pool_terms(summed)
        figures = self._monitor.figures()
        share = figures.get("zero_share", 0.0)
        if share >= self._config.warn_at and not self._warned:
            self._warned = True
            logger.warning(
                "softmax collapse at step %d: %.1f %% of the policy's log-probs are exactly 0 and have no gradient any more. "
                "Train with loss.normalizer=stablemax, or with optimizer.orthograd.enabled=true",
                self._step + 1,
                100 * share,
            )
        return {f"collapse/{name}": value for name, value in figures.items()}
