"""A teacher that has spoken already: its best tokens at each position of completions that are on the disk.

Nothing is sampled: a step's completions are the next rows of the files. What these cannot give is refused before the run
begins.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from grpo_client import TokenizerIdentity
from torch import Tensor

from grpo_training.config import ConfigError, DistillConfig, TrainConfig
from grpo_training.rollouts.rollout import Rollout
from grpo_training.rollouts.support import teachable, tokens_of
from grpo_training.rollouts.target_files import TargetFiles, TargetRow, walk
from grpo_training.rollouts.teacher import TeacherScores

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KnownLesson:
    """A portion's scores that nobody has to be asked for."""

    scores: TeacherScores
    latency_s: float = 0.0

    def collect(self) -> TeacherScores:
        """At once."""
        return self.scores


class StoredTeacher:
    """The files at `distillation.targets`."""

    def __init__(self, config: TrainConfig, tokenizer: TokenizerIdentity, *, vocab: int, longest: int) -> None:
        """tokenizer, vocab, longest: the policy's tokens, ids, and the most tokens of prompt and completion.

        Raises ConfigError that names what the files cannot give.
        """
        assert config.distillation is not None
        assert config.distillation.targets is not None
        self._config, self._options = config, config.distillation
        self._files = TargetFiles(config.distillation.targets)
        self._check(tokenizer, vocab, longest)
        self.left_out = self._files.left_out
        if self.left_out:
            logger.warning("distillation.targets: %d rows are left out, %d are trained on", self.left_out, len(self))

    def __len__(self) -> int:
        """Rows that are trained on."""
        return len(self._files)

    @property
    def vocab_size(self) -> int:
        """Of the teacher."""
        return self._files.about["vocab_size"]

    @property
    def fingerprint(self) -> str:
        """Of the rows and of who scored them."""
        return self._files.fingerprint

    def rows(self, step: int, mine: Sequence[int]) -> list[TargetRow]:
        """mine: the places among the rows of step `step` (from 0) that are wanted."""
        config = self._config
        count, seed = config.rollout.prompts_per_step, config.trainer.seed
        chosen = list(walk(self._files.parts, step, count, seed, shuffle=config.task.shuffle))
        return [self._files.row(*chosen[i]) for i in mine]

    def lesson(self, rows: Sequence[TargetRow], mask: Tensor, vocab: int) -> KnownLesson:
        """What the teacher says of `rows`, whose tokens are those in mask (S, C). vocab: ids of the policy lie below it."""
        cut = [_best(row, self._options.top_k) for row in rows]
        ids, logprobs, tail = (
            torch.from_numpy(np.concatenate(part)).to(mask.device) for part in zip(*cut, strict=True)
        )
        tokens = tokens_of("teacher", {"top_ids": ids, "top_logprobs": logprobs, "top_tail": tail}, None, vocab)
        return KnownLesson(TeacherScores(None, teachable(tokens, mask, self._options), tokens))

    def _check(self, tokenizer: TokenizerIdentity, vocab: int, longest: int) -> None:
        about, options, path = self._files.about, self._options, self._options.targets
        wanted = options.temperature or self._config.rollout.temperature
        temperatures = about["temperature"]
        if [np.float32(t) for t in temperatures] != [np.float32(wanted)]:
            told = " and ".join(map(_short, temperatures))
            remedy = (
                f"set distillation.temperature={told}" if len(temperatures) == 1 else "score them at one temperature"
            )
            raise _refused(
                f"{path} has targets of temperature {told}, and the run is of {_short(wanted)}, to which the log-probs of "
                f"a few ids cannot be brought: {remedy}"
            )
        if about["normalizer"] != self._config.loss.normalizer:
            raise _refused(
                f"{path} was scored under {about['normalizer']}, and loss.normalizer is {self._config.loss.normalizer}: score "
                f"it with --normalizer {self._config.loss.normalizer}"
            )
        self._check_ids(about["top_k"], has_tail=about["tail"])
        theirs = about.get("tokenizer_fingerprint")
        if theirs is None:
            logger.warning("%s does not tell its tokenizer: see to it that it is the policy's", path)
        elif theirs != tokenizer.fingerprint:
            raise _refused(
                f"{path} is by {about['model']}, which has another tokenizer than the policy ({about['tokens']} tokens, and "
                f"{tokenizer.tokens}): the same ids are other words to it. Score with a teacher of the policy's family"
            )
        if self._files.largest_id >= vocab:
            raise _refused(f"{path} holds the id {self._files.largest_id}, and the policy has a vocabulary of {vocab}")
        if self._files.longest > longest:
            raise _refused(
                f"{path} holds a prompt and completion of {self._files.longest} tokens, and the policy is made for {longest}"
            )

    def _check_ids(self, k: int, *, has_tail: bool) -> None:
        options: DistillConfig = self._options
        if options.top_k > k and k < self.vocab_size:
            raise _refused(
                f"{options.targets} holds {k} ids of each position, and distillation.top_k is {options.top_k}: set top_k={k}, "
                f"or score with --top-k {options.top_k}"
            )
        if options.tail == "bucket" and not has_tail:
            raise _refused(
                f"{options.targets} does not hold the mass outside its ids, which distillation.tail=bucket needs: score with "
                f"--tail, or set tail=renormalise"
            )


def as_rollout(rows: Sequence[TargetRow], device: torch.device) -> Rollout:
    """Each row as a group of one. Nobody sampled them, so their log-probs are 0, and each has its end."""
    width = max(len(row.completion_ids) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row.completion_ids)] = torch.tensor(row.completion_ids)
        mask[i, : len(row.completion_ids)] = True
    ids, mask = ids.to(device), mask.to(device)
    ended = torch.ones(len(rows), dtype=torch.bool, device=device)
    return Rollout([row.prompt_ids for row in rows], 1, ids, mask, torch.zeros(mask.shape, device=device), None, ended)


def _best(row: TargetRow, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first k ids of each position, which are the best; what the others have is mass outside."""
    rest = row.top_logprobs[:, k:]
    outside = np.zeros(len(rest), np.float32)
    if row.tail is not None:
        outside = np.logaddexp.reduce(np.concatenate([row.tail[:, None], rest], axis=1), axis=1)
    return row.top_ids[:, :k], row.top_logprobs[:, :k], outside


def _short(value: float) -> str:
    """As few digits as tell a float32 from its neighbours."""
    return np.format_float_positional(np.float32(value), trim="-")


def _refused(what: str) -> ConfigError:
    return ConfigError(f"distillation.targets: {what}")
