"""From settings to the first step in three phases, each with a value for what it yields.

begun = check(config, world, ...)     nothing is loaded: can this be run here, and from where does it go on?
built = build(begun, world)           model, optimizer, tasks: everything that the settings name
state = load(begun, built)            the numbers of the checkpoint, if there is one
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.optim.lr_scheduler import LambdaLR

from grpo_training.config import ConfigError, TaskConfig, TrainConfig
from grpo_training.distributed import World
from grpo_training.models import adapters, lora, weights
from grpo_training.models.loading import LoadedModel, load_model
from grpo_training.models.recompute import recompute_layers
from grpo_training.report.trackers import check_trackers
from grpo_training.rollouts.environment import Environments
from grpo_training.rollouts.policy import Policy
from grpo_training.rollouts.sampling import PolicySampler
from grpo_training.rollouts.stored_teacher import StoredTeacher
from grpo_training.run.beginning import check_output
from grpo_training.run.checkpoint import Checkpoints, TrainerState, load_checkpoint
from grpo_training.run.evaluation import Evaluator, held_out_tasks
from grpo_training.run.offline import open_targets
from grpo_training.run.optimizing import make_optimizer, make_scheduler, set_rate
from grpo_training.run.same_run import check_same_data, check_same_run
from grpo_training.run.teachers import check_rows
from grpo_training.tasks.task import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Begun:
    """config: with what an adapter on disk adds to it. newest: the checkpoint to go on from. held_out: tasks to evaluate."""

    config: TrainConfig
    checkpoints: Checkpoints
    newest: Path | None
    held_out: dict[str, TaskConfig]


@dataclass(frozen=True, slots=True)
class Built:
    """What a run trains, and on what. targets: what a teacher has said already, where that is trained on. data: fingerprints of
    the questions, of the targets and of a frozen base model."""

    loaded: LoadedModel
    policy: Policy
    optimizer: torch.optim.Optimizer
    scheduler: LambdaLR
    task: Task
    evaluator: Evaluator
    environments: Environments | None
    targets: StoredTeacher | None
    data: dict[str, str]


def check(config: TrainConfig, world: World, *, resume: bool, overwrite: bool) -> Begun:
    """Raises ConfigError for what cannot be run here; afterwards the output directory is this run's."""
    config = adapters.resolved(config)
    if world.main:
        check_output(config)
        check_trackers(config.trainer.trackers)
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
    world.agree(
        [newest and newest.name], "the processes see different checkpoints: put trainer.output where all can read"
    )
    return Begun(config, checkpoints, newest, held_out)


def build(begun: Begun, world: World) -> Built:
    """Everything as for a new run. Raises ConfigError for a model or a task that cannot be used."""
    config = begun.config
    if config.model.threads is not None:
        torch.set_num_threads(config.model.threads)
    if world.main:
        logger.info("loading %s", config.model.name)
    loaded = _load_trained(config, world)
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
    task = Task(
        config.task,
        loaded.tokenizer,
        max_prompt_tokens=config.rollout.max_prompt_tokens,
        long_prompts=config.rollout.long_prompts,
        seed=config.trainer.seed,
    )
    answering = config.rollout.environment
    environments = Environments(answering, loaded.tokenizer) if answering else None
    evaluator = Evaluator(config, begun.held_out, PolicySampler(config, loaded, policy, world, environments))
    if config.distillation is not None:
        check_rows(task, config.distillation)
    targets = open_targets(config, loaded)
    data = frozen | {"task": task.fingerprint} | evaluator.fingerprints
    if targets is not None:
        data["distillation.targets"] = targets.fingerprint
    world.agree([data], "the processes read different data, or different base models: give all of them the same")
    scheduler = make_scheduler(config, optimizer)
    return Built(loaded, policy, optimizer, scheduler, task, evaluator, environments, targets, data)


def load(begun: Begun, built: Built) -> TrainerState:
    """Put the checkpoint's numbers in place. Raises CheckpointError for one that is broken, or of another run."""
    config = begun.config
    if begun.newest is None:
        return TrainerState(0, None, config.model_dump(mode="json"), built.data)
    state = load_checkpoint(begun.newest, built.loaded.model, built.optimizer, built.scheduler)
    check_same_run(state.config, config)
    check_same_data(state.data, built.data)
    set_rate(built.optimizer, built.scheduler)
    return TrainerState(state.step, state.fingerprint, state.config, built.data, state.teachers)


def _load_trained(config: TrainConfig, world: World) -> LoadedModel:
    """The model that is trained: whole, or under an adapter."""
    adapter = "leave" if config.lora is not None else "merge"
    loaded = load_model(config.model, stop=config.rollout.stop, device=world.device, adapter=adapter)
    if config.lora is not None:
        lora.add_adapter(loaded.model, config.lora, seed=config.trainer.seed, start=config.model.name)
    return loaded
