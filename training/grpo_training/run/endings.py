"""Whether completions end by themselves: one warning where none of a step does."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)


class Endings:
    """Told the share of each step's completions that ended; speaks once, and again only after some have."""

    def __init__(self, max_new_tokens: int) -> None:
        self._limit = max_new_tokens
        self._told = False

    def saw(self, step: int, ended: float) -> None:
        """step: from 0. ended: share of the completions that were not cut."""
        if ended == 0 and not self._told:
            logger.warning(
                "step %d: no completion ended by itself, all were cut at rollout.max_new_tokens=%d: raise it, name an end in "
                "rollout.stop, or see whether the prompt and the chat template are those of the model",
                step + 1,
                self._limit,
            )
        self._told = ended == 0
