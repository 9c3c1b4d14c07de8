"""What is found out before the first step: a run can be written, and policy and reference speak of the same tokens."""

from __future__ import annotations

import logging
from pathlib import Path

from grpo_training.config import ConfigError, TrainConfig
from grpo_training.disk import check_writable
from grpo_training.models.loading import LoadedModel

logger = logging.getLogger(__name__)


def check_output(config: TrainConfig) -> None:
    """Raises ConfigError where the run's directory cannot be written, or what it writes would replace what it reads."""
    output = config.trainer.output
    check_writable(output)
    ours = [(output / name).resolve() for name in ("model", "merged", "checkpoints", "served")]
    read = Path(config.model.name)
    if read.exists() and any(read.resolve().is_relative_to(directory) for directory in ours):
        raise ConfigError(f"model.name={read} lies where this run writes: choose another trainer.output than {output}")


def shared_vocabulary(loaded: LoadedModel, size: int, *, who: str = "the reference") -> int | None:
    """How many of the policy's ids `who` has too, over which the policy is then a distribution; None: it has all.

    A model's vocabulary may be padded beyond its tokenizer's, to different sizes in one family: ids that only the policy has
    are then never sampled and have no probability. Raises ConfigError where the tokenizer itself makes such ids.
    """
    mine = loaded.model.config.get_text_config().vocab_size
    tokens = max(loaded.tokenizer.get_vocab().values()) + 1
    if min(tokens, mine) > size:
        raise ConfigError(
            f"the policy (model.name) has {mine} ids, {tokens} of them in its tokenizer, but {who} has a vocabulary of "
            f"{size}: it cannot score the others. Serve the model that the policy started from"
        )
    if mine <= size:
        return None
    logger.warning(
        "the policy has a vocabulary of %d and %s one of %d: ids from %d on, which the tokenizer does not use, are not sampled",
        mine,
        who,
        size,
        size,
    )
    return size
