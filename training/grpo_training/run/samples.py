"""What a step leaves of its groups in `samples.jsonl`: one record a group, for people, the report and `grpo-client check`.

The fields are those of `grpo_client.findings.samples`. Log-probs are written with as few digits as a float32 needs: ids take
some 4 bytes a token, and each figure some 11.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from grpo_training.config import TrainConfig
from grpo_training.models.loading import eos_ids
from grpo_training.rollouts.rollout import Rollout
from grpo_training.run.groups import Groups
from grpo_training.run.parts import Parts
from grpo_training.run.portion import Portion

MOST_TOKENS = 4096  # of a group that is written token by token; a longer one leaves its text


@dataclass(frozen=True, slots=True)
class Sample:
    """One group of a step. A reward that is not known is NaN. tokens: the rest of the record, None for text alone. turns: of
    each completion as messages, where an environment took part."""

    prompt: str
    completions: list[str]
    rewards: list[float]
    tokens: dict[str, Any] | None = None
    turns: list[list[dict[str, str]]] | None = None

    def record(self) -> dict[str, Any]:
        """As it is written."""
        text = {"prompt": self.prompt, "completions": self.completions, "rewards": self.rewards}
        return text | ({} if self.turns is None else {"turns": self.turns}) | (self.tokens or {})


def samples_of(parts: Parts, step: int, portions: Sequence[Portion], groups: Groups) -> list[Sample]:
    """The groups that `trainer.samples` asks for: the first of the step, or all of this process."""
    wanted, of = parts.config.trainer.samples, groups.rollout.group_size
    about = _about(parts, step) if wanted != "text" else None
    samples: list[Sample] = []
    tables = (table for portion in portions for table in _tables(portion, parts.sampler.foreign))
    for k, (problem, (tokens, columns)) in enumerate(zip(groups.problems, tables, strict=True)):
        here = slice(k * of, (k + 1) * of)
        judged = groups.judgement.judged[here]
        record = None
        if about is not None and tokens <= MOST_TOKENS:
            correct = [bool(j.correct) for j in judged]
            record = about | {"prompt_ids": list(problem.prompt_ids), "correct": correct} | columns
        texts = [completion.text for completion in groups.completions[here]]
        turns = None
        if groups.rollout.episodes:
            turns = [[{"role": r, "content": t} for r, t in c.turns] for c in groups.completions[here]]
        samples.append(Sample(problem.prompt_text, texts, [float(j.reward) for j in judged], record, turns))
        if wanted != "all":
            break
    return samples


def _about(parts: Parts, step: int) -> dict[str, Any]:
    """What is the same for every group of the step."""
    config: TrainConfig = parts.config
    about: dict[str, Any] = {
        "temperature": config.rollout.temperature,
        "normalizer": config.loss.normalizer,
        "precision": "bfloat16" if "bfloat16" in (config.model.dtype, config.model.precision) else "float32",
        "weights_step": step,
        "end_ids": sorted(eos_ids(parts.loaded.model, parts.loaded.tokenizer)),
    }
    if config.rollout.stop:
        about["stop"] = list(config.rollout.stop)
    if parts.reference:
        about |= {"fingerprint": parts.reference.info.fingerprint, "ref_dtype": parts.reference.info.dtype}
    return about


def _tables(portion: Portion, foreign: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    """Of each group its tokens in number, and what stands in the record a list per completion."""
    rollout = portion.rollout
    figures: dict[str, Tensor | None] = {
        "policy_logprobs": rollout.logprobs if portion.old is None else portion.old,
        "ref_logprobs": portion.reference,
        "sampler_logprobs": rollout.logprobs if foreign else None,
        "entropy": rollout.entropy,
    }
    rows = {name: _ragged(figure, rollout) for name, figure in figures.items() if figure is not None}
    completions, written = rollout.completions(), rollout.written()
    ended, advantages = rollout.ended.tolist(), _short(portion.advantages.double().cpu().numpy())
    for k, ids in enumerate(completions):
        here = slice(k * rollout.group_size, (k + 1) * rollout.group_size)
        columns: dict[str, Any] = {"completion_ids": ids, "ended": ended[here], "advantage": advantages[here]}
        if written is not None:
            columns["completion_mask"] = [[int(mine) for mine in row] for row in written[k]]
        yield sum(map(len, ids)), columns | {name: values[here] for name, values in rows.items()}


def _ragged(figure: Tensor, rollout: Rollout) -> list[list[float | None]]:
    """(S, C) as a list per completion; None for what the policy did not write, which has no figure."""
    values = figure.detach().float().cpu().numpy()
    written, lengths = rollout.loss_mask.cpu().numpy(), rollout.lengths.tolist()
    return [
        [x if there else None for x, there in zip(_short(row[:n]), mask[:n], strict=True)]
        for row, mask, n in zip(values, written, lengths, strict=True)
    ]


def _short(values: np.ndarray) -> list[float]:
    """Each as the shortest number that is the same float32."""
    return [float(str(x)) for x in values.astype(np.float32)]
