"""A whole GRPO run: check, build and load (`setup`), do the steps, keep checkpoints and metrics, write the report.

    summary = train(load_config("examples/arithmetic.yaml"))

`observer` sees every step as it ends; the terminal's progress display is one. What a step does is in `step`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from grpo_training.config import NothingTrained, TrainConfig
from grpo_training.disk import disk_faults
from grpo_training.distributed import World
from grpo_training.models import weights
from grpo_training.report.report import write_report
from grpo_training.rollouts.reference import Reference
from grpo_training.rollouts.sampling import open_sampler
from grpo_training.rollouts.teacher import Teachers
from grpo_training.run.beginning import shared_vocabulary
from grpo_training.run.checkpoint import Checkpoints, TrainerState
from grpo_training.run.endings import Endings
from grpo_training.run.evaluation import EvaluationLog, Evaluator
from grpo_training.run.first_lesson import check_first_lesson
from grpo_training.run.moving import MovingReference
from grpo_training.run.offline import offline_step
from grpo_training.run.outputs import open_outputs
from grpo_training.run.setup import Built, build, check, load
from grpo_training.run.step import Parts, StepReport, grpo_step
from grpo_training.run.teachers import open_teachers
from grpo_training.run.tokenizers import check_tokenizers, scorers
from grpo_training.run.watch import CollapseWatch


class Observer(Protocol):
    """Told what happens in a run."""

    def started(self, config: TrainConfig, first_step: int, reference: str | None) -> None: ...

    def stepped(self, step: int, report: StepReport) -> None: ...

    def evaluated(self, done: int, figures: dict[str, float]) -> None: ...

    def saved(self, path: Path) -> None: ...


def train(
    config: TrainConfig, *, resume: bool = False, overwrite: bool = False, observer: Observer | None = None
) -> dict[str, Any]:
    """Run to `config.trainer.steps` and return the summary, which is also written to `summary.json`.

    Under torchrun or `accelerate launch` this is one process of several; all but rank 0 write nothing, return {} and do not
    tell the observer.

    resume: go on from the newest checkpoint in the output directory, or start when there is none. overwrite: start
    anew in a directory that holds a run. Raises ConfigError, CheckpointError, or the client's errors when the
    reference stays away for longer than `reference.max_wait` or is another one, RolloutError when a rollout server does,
    OutputError when the disk is full, NothingTrained, after the report is written, when no step changed a weight.
    """
    world = World.join(config)
    with disk_faults(config.trainer.output):
        summary = _train(config, world, resume=resume, overwrite=overwrite, observer=observer)
    world.leave()  # not after an error: the others may be waiting for this process, and the launcher ends them
    return summary


def _train(
    config: TrainConfig, world: World, *, resume: bool, overwrite: bool, observer: Observer | None
) -> dict[str, Any]:
    begun = check(config, world, resume=resume, overwrite=overwrite)
    config, began = begun.config, time.perf_counter()
    built = build(begun, world)
    state = load(begun, built)
    observer = observer if world.main else None
    with _parts(config, built, state, world) as parts:
        reference = parts.reference.info if parts.reference else None
        if observer:
            observer.started(config, state.step, reference.model if reference else None)
        updates = _steps(parts, built.evaluator, state, begun.checkpoints, observer)
    trained = weights.gathered(built.loaded.model) if config.trainer.save_model else None
    if not world.main:
        return {}
    if config.trainer.save_model:
        weights.write_final(config, built.loaded, trained)
    summary = write_report(
        config.trainer.output,
        config,
        reference=reference.model_dump() if reference else None,
        seconds=time.perf_counter() - began,
        first_step=state.step,
    )
    if state.step < config.trainer.steps and not updates:
        raise NothingTrained(
            f"no step changed a weight; of all completions {summary['rewards_unmeasured']} had a reward that is None or "
            f"not finite, {summary['unscored'] or 0} could not be scored by the reference: "
            f"{config.trainer.output / 'metrics.jsonl'}"
        )
    return summary


@contextmanager
def _parts(config: TrainConfig, built: Built, state: TrainerState, world: World) -> Iterator[Parts]:
    """What a step works with, connections included, for as long as the block lasts."""
    first = [p.prompt_ids for p in built.task.problems(0, 1, config.trainer.seed)]
    with (
        closing(built.task),
        closing(built.evaluator),
        closing(built.environments) if built.environments else nullcontext(),
        open_sampler(config, built.loaded, built.policy, world, first, built.environments) as sampler,
        _reference(config, state) as reference,
        open_teachers(config, built.loaded, state.teachers) as teachers,
    ):
        world.agree(
            [reference and reference.info.fingerprint],
            "the processes are answered by different references: give all of them the same reference.urls",
        )
        world.agree(
            [teachers and teachers.fingerprints],
            "the processes are answered by different teachers: give all of them the same distillation.teachers",
        )
        check_tokenizers(scorers(reference, teachers), built.loaded.tokenizer)
        if shared := _shared_vocabulary(built, reference, teachers):
            built.policy.vocab_size = shared
            sampler.keep_below(shared)
            if teachers:
                teachers.keep_below(shared)
        parts = Parts(
            config=config,
            loaded=built.loaded,
            policy=built.policy,
            task=built.task,
            sampler=sampler,
            watch=CollapseWatch(config.collapse, normalizer=config.loss.normalizer),
            endings=Endings(config.rollout.max_new_tokens),
            optimizer=built.optimizer,
            scheduler=built.scheduler,
            reference=reference,
            teachers=teachers,
            targets=built.targets,
            world=world,
        )
        check_first_lesson(parts, first, new=state.step == 0)
        yield parts


def _steps(
    parts: Parts, evaluator: Evaluator, state: TrainerState, checkpoints: Checkpoints, observer: Observer | None
) -> int:
    """Do the steps that are left; returns how many of them changed the weights."""
    config, main, updates = parts.config, parts.world.main, 0
    do_step = grpo_step if parts.targets is None else offline_step
    every = config.trainer.checkpoint_every
    with (
        open_outputs(config, state.step, writes=main) as outputs,
        EvaluationLog(config, state.step, writes=main) as evaluations,
    ):
        parts.world.agree(
            evaluations.done, "the processes see different eval.jsonl: put trainer.output on a shared disk"
        )
        evaluations.after(state.step, evaluator, observer)
        move_reference = MovingReference(parts, state.step, state.fingerprint)
        for step in range(state.step, config.trainer.steps):
            move_reference(step)
            report = do_step(parts, step)
            updates += not report.figures["policy/skipped"]
            outputs.write(step, report)
            if observer:
                observer.stepped(step, report)
            done = step + 1
            # Before the checkpoint: whoever goes on from it need not evaluate it again.
            evaluations.after(done, evaluator, observer)
            if every and (done % every == 0 or done == config.trainer.steps):
                path = _save(parts, done, state.data, checkpoints)
                if observer:
                    observer.saved(path)
    return updates


def _save(parts: Parts, done: int, data: dict[str, str] | None, checkpoints: Checkpoints) -> Path:
    fingerprint = parts.reference.info.fingerprint if parts.reference else None
    teachers = parts.teachers.fingerprints if parts.teachers else None
    return checkpoints.save(
        TrainerState(done, fingerprint, parts.config.model_dump(mode="json"), data, teachers),
        parts.loaded.model,
        parts.loaded.tokenizer,
        parts.optimizer.state_dict(),
        parts.scheduler.state_dict(),
    )


def _shared_vocabulary(built: Built, reference: Reference | None, teachers: Teachers | None) -> int | None:
    """The ids that policy, reference and teachers all have; None: all of the policy's."""
    sizes = {"the reference": reference.info.vocab_size} if reference else {}
    if teachers:
        sizes |= {f"the teacher {name}": info.vocab_size for name, info in teachers.info.items()}
    if built.targets:
        sizes["the teacher of distillation.targets"] = built.targets.vocab_size
    shared = [shared_vocabulary(built.loaded, size, who=who) for who, size in sizes.items()]
    return min((size for size in shared if size is not None), default=None)


def _reference(config: TrainConfig, state: TrainerState) -> AbstractContextManager[Reference | None]:
    if config.loss.beta == 0:
        return nullcontext(None)
    every = config.reference.sync_every
    moves_now = bool(every and state.step and state.step % every == 0)  # which may have been done before a kill
    return Reference(
        config.reference,
        temperature=config.rollout.temperature,
        normalizer=config.loss.normalizer,
        fingerprint=None if moves_now else state.fingerprint,
    )
