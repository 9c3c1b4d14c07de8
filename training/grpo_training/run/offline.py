"""One step on what a teacher has said already: rows of files in place of rollouts, and no reward.

the next rows  ->  send them to the reference, where there is a KL  ->  the policy's forward  ->  divergence, backward
    ->  update
"""

from __future__ import annotations

import math
import time

import torch
from grpo_client import TokenizerIdentity
from grpo_numerics.model_parts import longest_sequence

from grpo_training.config import TrainConfig
from grpo_training.models.loading import LoadedModel
from grpo_training.rollouts.reference import Pending
from grpo_training.rollouts.rollout import Rollout
from grpo_training.rollouts.stored_teacher import StoredTeacher, as_rollout
from grpo_training.run.parts import Clock, Parts
from grpo_training.run.portion import Portion
from grpo_training.run.samples import Sample
from grpo_training.run.step import StepReport
from grpo_training.run.update import Update


def open_targets(config: TrainConfig, loaded: LoadedModel) -> StoredTeacher | None:
    """None without `distillation.targets`. Raises ConfigError for files that cannot give what the run asks for."""
    if config.distillation is None or config.distillation.targets is None:
        return None
    text = loaded.model.config.get_text_config(decoder=True)
    return StoredTeacher(
        config,
        TokenizerIdentity.of(loaded.tokenizer),
        vocab=text.vocab_size,
        longest=longest_sequence(text),
    )


def offline_step(parts: Parts, step: int) -> StepReport:
    """Do step number `step` (from 0) and say what happened."""
    config, world, clock, started = parts.config, parts.world, Clock(), time.perf_counter()
    teacher = parts.targets
    assert teacher is not None
    with clock("targets"):
        rows = teacher.rows(step, world.groups(config).prompts)
        rollout = as_rollout(rows, parts.loaded.model.device)
    rollouts = rollout.portions(config.trainer.portions)
    pending: list[Pending | None] = [*parts.reference.submit(rollouts)] if parts.reference else [None] * len(rollouts)
    vocab = parts.policy.vocab_size or parts.loaded.model.config.get_text_config(decoder=True).vocab_size
    each = len(rows) // len(rollouts)
    portions = [
        Portion(part, asked, teacher.lesson(rows[i * each : (i + 1) * each], part.mask, vocab))
        for i, (part, asked) in enumerate(zip(rollouts, pending, strict=True))
    ]
    parts.watch.begin(step, parts.policy, rollouts)
    figures = Update(parts, step, portions, clock).run()
    del figures["policy/sampler_gap"]  # nobody sampled these
    figures |= world.maxima(parts.watch.figures(world.sum))
    lengths = rollout.lengths
    untaught = sum(portion.untaught for portion in portions)
    tokens, count, unscored = world.sum(torch.tensor([int(lengths.sum()), len(rows), untaught])).tolist()
    figures |= {
        "completion/length": tokens / count,
        "completion/tokens": tokens,
        "teacher/unscored": unscored,
        "targets/left_out": float(teacher.left_out),
        "targets/epoch": (step + 1) * config.rollout.prompts_per_step / len(teacher),
    } | world.maxima({"completion/length_max": float(lengths.max())})
    slowest = {f"time/{name}_s": seconds for name, seconds in clock.seconds.items()}
    slowest["time/step_s"] = time.perf_counter() - started
    if parts.reference:
        figures["reference/version"] = float(parts.reference.info.version)
        slowest["reference/latency_s"] = max(portion.latency_s for portion in portions)
    return StepReport(figures | world.maxima(slowest), [_shown(parts, rollout)])


def _shown(parts: Parts, rollout: Rollout) -> Sample:
    """The first row as text; there is no reward."""
    spelt = parts.loaded.tokenizer.batch_decode([rollout.prompts[0], rollout.completions()[0][0]])
    return Sample(spelt[0], [spelt[1]], [math.nan])
