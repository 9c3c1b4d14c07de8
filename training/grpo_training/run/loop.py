"""A whole GRPO run: build the parts, do the steps, keep checkpoints and metrics, write the report.

    summary = train(load_config("examples/arithmetic.yaml"))

`observer` sees every step as it ends; the terminal's progress display is one. What a step does is in `step`.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from grpo_training.config import ConfigError, NothingTrained, TrainConfig
from grpo_training.disk import disk_faults
from grpo_training.distributed import World
from grpo_training.models import adapters, lora, weights
from grpo_training.models.loading import load_model
from grpo_training.models.recompute import recompute_layers
from grpo_training.report.metrics import JsonLines, TensorBoard
from grpo_training.report.plots import write_report
from grpo_training.rollouts.policy import Policy
from grpo_training.rollouts.reference import Reference
from grpo_training.rollouts.sampling import open_sampler
from grpo_training.run.beginning import check_output, shared_vocabulary
from grpo_training.run.checkpoint import Checkpoints, TrainerState, load_checkpoint
from grpo_training.run.evaluation import EvaluationLog, Evaluator, held_out_tasks
from grpo_training.run.optimizing import make_optimizer, make_scheduler, set_rate
from grpo_training.run.same_run import check_same_data, check_same_run
from grpo_training.run.step import Parts, StepReport, grpo_step
from grpo_training.run.watch import CollapseWatch
from grpo_training.tasks.task import Task

logger = logging.getLogger(__name__)


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
    config = adapters.resolved(config)
    if world.main:
        check_output(config)
    # Also the moment from which on no process of this run has touched the disk and none of an earlier one still does.
    world.agree([config.model_dump(mode="json")], "the processes have different settings: start all with one command")
    output = config.trainer.output
    checkpoints = Checkpoints(output / "checkpoints", keep=config.trainer.keep_checkpoints, writes=world.main)
    newest = checkpoints.latest() if resume else None
    # A run that was killed before its first checkpoint is begun again; one that came to its end is nobody's to lose.
    killed_early = resume and not (output / "summary.json").exists()
    if newest is None and not (overwrite or killed_early) and (output / "metrics.jsonl").exists():
        raise ConfigError(f"{output} holds a run already: resume it, overwrite it, or choose another trainer.output")
    if newest is None and world.main:
        checkpoints.forget()
        (output / "summary.json").unlink(missing_ok=True)  # says that a run came to its end
    held_out = held_out_tasks(config)
    if config.model.threads is not None:
        torch.set_num_threads(config.model.threads)

    world.agree(
        [newest and newest.name], "the processes see different checkpoints: put trainer.output where all can read"
    )

    began = time.perf_counter()
    if world.main:
        logger.info("loading %s", config.model.name)
    adapter = "leave" if config.lora is not None else "merge"
    loaded = load_model(config.model, stop=config.rollout.stop, device=world.device, adapter=adapter)
    if config.lora is not None:
        lora.add_adapter(loaded.model, config.lora, seed=config.trainer.seed, start=config.model.name)
    frozen = weights.frozen_fingerprint(loaded.model)
    policy = Policy(
        loaded.model,
        temperature=config.rollout.temperature,
        normalizer=config.loss.normalizer,
        precision=config.model.precision,
    )
    if config.model.gradient_checkpointing:
        recompute_layers(loaded.model)
    world.wrap(loaded.model)
    optimizer = make_optimizer(config, loaded)
    scheduler = make_scheduler(config, optimizer)
    state = TrainerState(0, None, config.model_dump(mode="json"))
    if newest is not None:
        state = load_checkpoint(newest, loaded.model, optimizer, scheduler)
        check_same_run(state.config, config)
        set_rate(optimizer, scheduler)
    observer = observer if world.main else None
    task = Task(
        config.task, loaded.tokenizer, max_prompt_tokens=config.rollout.max_prompt_tokens, seed=config.trainer.seed
    )
    evaluator = Evaluator(config, held_out, loaded, policy, world)
    data = frozen | {"task": task.fingerprint} | evaluator.fingerprints
    world.agree([data], "the processes read different data, or different base models: give all of them the same")
    if newest is not None:
        check_same_data(state.data, data)
    state = replace(state, data=data)
    first = [p.prompt_ids for p in task.problems(0, 1, config.trainer.seed)]
    with (
        open_sampler(config, loaded, policy, world, first) as sampler,
        _reference(config, state.fingerprint) as reference,
    ):
        world.agree(
            [reference and reference.info.fingerprint],
            "the processes are answered by different references: give all of them the same reference.urls",
        )
        if reference and (shared := shared_vocabulary(loaded, reference.info.vocab_size)):
            policy.vocab_size = shared
            sampler.keep_below(shared)
        parts = Parts(
            config=config,
            loaded=loaded,
            policy=policy,
            task=task,
            sampler=sampler,
            watch=CollapseWatch(config.collapse, normalizer=config.loss.normalizer),
            optimizer=optimizer,
            scheduler=scheduler,
            reference=reference,
            world=world,
        )
        if observer:
            observer.started(config, state.step, reference.info.model if reference else None)
        updates = _steps(parts, evaluator, state, checkpoints, observer)
        reference_info = reference.info.model_dump() if reference else None
    trained = weights.gathered(loaded.model) if config.trainer.save_model else None
    if not world.main:
        return {}
    if config.trainer.save_model:
        weights.write_final(config, loaded, trained)
    summary = write_report(
        output, config, reference=reference_info, seconds=time.perf_counter() - began, first_step=state.step
    )
    if state.step < config.trainer.steps and not updates:
        raise NothingTrained(
            f"no step changed a weight; of all completions {summary['rewards_unmeasured']} had a reward that is None or "
            f"not finite, {summary['unscored'] or 0} could not be scored by the reference: {output / 'metrics.jsonl'}"
        )
    return summary


def _steps(
    parts: Parts, evaluator: Evaluator, state: TrainerState, checkpoints: Checkpoints, observer: Observer | None
) -> int:
    """Do the steps that are left; returns how many of them changed the weights."""
    updates = 0
    config = parts.config
    every = config.trainer.checkpoint_every
    main = parts.world.main
    sinks_and_samples = _sinks(config, state.step) if main else nullcontext(([], None))
    with sinks_and_samples as (sinks, samples), EvaluationLog(config, state.step, writes=main) as evaluations:
        parts.world.agree(
            evaluations.done, "the processes see different eval.jsonl: put trainer.output on a shared disk"
        )
        evaluations.after(state.step, evaluator, observer)
        for step in range(state.step, config.trainer.steps):
            report = grpo_step(parts, step)
            updates += not report.figures["policy/skipped"]
            for sink in sinks:
                sink.write(step, report.figures)
            if samples is not None:
                samples.write(step, asdict(report.sample))
            if observer:
                observer.stepped(step, report)
            done = step + 1
            # Before the checkpoint: whoever goes on from it need not evaluate it again.
            evaluations.after(done, evaluator, observer)
            if every and (done % every == 0 or done == config.trainer.steps):
                path = checkpoints.save(
                    TrainerState(
                        done,
                        parts.reference.info.fingerprint if parts.reference else None,
                        config.model_dump(mode="json"),
                        state.data,
                    ),
                    parts.loaded.model,
                    parts.loaded.tokenizer,
                    parts.optimizer.state_dict(),
                    parts.scheduler.state_dict(),
                )
                if observer:
                    observer.saved(path)
    return updates


def _reference(config: TrainConfig, fingerprint: str | None) -> Any:
    if config.loss.beta == 0:
        return nullcontext(None)
    return Reference(
        config.reference,
        temperature=config.rollout.temperature,
        normalizer=config.loss.normalizer,
        fingerprint=fingerprint,
    )


@contextmanager
def _sinks(config: TrainConfig, first_step: int) -> Iterator[tuple[list[JsonLines | TensorBoard], JsonLines]]:
    output = config.trainer.output
    sinks: list[JsonLines | TensorBoard] = [JsonLines(output / "metrics.jsonl", first_step=first_step)]
    if config.trainer.tensorboard:
        sinks.append(TensorBoard(output / "tensorboard", first_step=first_step))
    samples = JsonLines(output / "samples.jsonl", first_step=first_step)
    (output / "config.json").write_text(json.dumps(config.model_dump(mode="json"), indent=1), encoding="utf-8")
    try:
        yield sinks, samples
    finally:
        for sink in (*sinks, samples):
            sink.close()
