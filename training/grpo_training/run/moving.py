"""A reference that follows the policy: every so many steps the policy is saved and the server told to host it, or to mix it in.

    reference:
      sync_every: 64
      mixup_alpha: 0.6

As in TRL (`sync_ref_model`), from step `sync_every` on, ahead of the step's rollouts; the KL of that step is measured
against the reference as it is then, whose version is in the metrics.
"""

from __future__ import annotations

import logging
import shutil

from grpo_training.config import ConfigError
from grpo_training.disk import whole_directory
from grpo_training.models.weights import save_whole_model
from grpo_training.run.parts import Parts

logger = logging.getLogger(__name__)


class MovingReference:
    """Call it with the number of each step, ahead of it. held: fingerprint of the reference that the checkpoint of `begun`
    steps was measured against. Raises ConfigError for several processes."""

    def __init__(self, parts: Parts, begun: int, held: str | None) -> None:
        self._parts = parts
        self._every = parts.config.reference.sync_every if parts.reference else 0
        if self._every and parts.world.size > 1:
            raise ConfigError(f"reference.sync_every is for one process, not {parts.world.size}: leave it at 0")
        # A run that was killed behind this move has done it already: an average taken twice is another.
        self._done = begun if parts.reference and held not in (None, parts.reference.info.fingerprint) else 0

    def __call__(self, step: int) -> None:
        """Raises the client's errors when the server does not take it."""
        reference = self._parts.reference
        if not self._every or not step or step % self._every or step == self._done or reference is None:
            return
        directory = self._parts.config.trainer.output.resolve() / "reference"
        final = directory / f"step-{step:06d}"
        with whole_directory(final) as draft:
            save_whole_model(self._parts.loaded, draft)
        reference.move(final, self._parts.config.reference.mixup_alpha)
        logger.info(
            "step %d: the reference is version %d, %s", step, reference.info.version, reference.info.fingerprint[:16]
        )
        for (
            old
        ) in directory.iterdir():  # the server has what it needs in memory, and the latest may be asked for once more
            if old != final:
                shutil.rmtree(old)
