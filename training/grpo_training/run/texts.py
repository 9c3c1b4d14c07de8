"""A rollout as what is judged: texts, ids, and the problem that each completion is of."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from grpo_training.rollouts.rollout import Rollout
from grpo_training.tasks.calling import Completion
from grpo_training.tasks.prompting import Problem


def completed(tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem], rollout: Rollout) -> list[Completion]:
    """(S,) completions, those of problems[k] in group k."""
    rows = [ids for group in rollout.completions() for ids in group]
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
    raw = tokenizer.batch_decode(rows, skip_special_tokens=False)
    episodes = rollout.episodes or [None] * len(rows)
    return [
        Completion(
            problems[i // rollout.group_size],
            text,
            ids,
            whole,
            not ended,
            () if episode is None else tuple((turn.role, turn.text) for turn in episode.turns),
            None if episode is None else episode.environment,
        )
        for i, (ids, text, whole, ended, episode) in enumerate(
            zip(rows, texts, raw, rollout.ended.tolist(), episodes, strict=True)
        )
    ]
