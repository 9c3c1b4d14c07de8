"""The whole of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from .data import EvalConfig, RolloutConfig, TaskConfig
from .distillation import DistillConfig
from .learning import CollapseConfig, LossConfig, OptimizerConfig
from .model import LoraConfig, ModelConfig, ReferenceConfig
from .section import Section


class TrainerConfig(Section):
    """How long, in what portions, and what is written."""

    steps: int = Field(default=100, ge=1)
    """Steps in all, those before a resume included."""
    seed: int = Field(default=0, ge=0)
    """Everything random in step n follows from (seed, n) alone, so a resumed run repeats an undisturbed one."""
    gradient_accumulation: int = Field(default=1, ge=1)
    """Portions that the groups of an update are cut into, one forward and backward each. Must divide prompts_per_step."""
    minibatches: int = Field(default=1, ge=1)
    """Parts that a step's groups are cut into, with an optimizer step on each, in turn. Times gradient_accumulation, it must
    divide prompts_per_step."""
    iterations: int = Field(default=1, ge=1)
    """Passes over each batch of rollouts; from the second update on the importance ratio is at work."""

    @property
    def portions(self) -> int:
        """Forward and backward passes over a step's groups."""
        return self.minibatches * self.gradient_accumulation

    output: Path = Path("runs/train")
    """Directory for metrics, samples, checkpoints and the report."""
    checkpoint_every: int = Field(default=50, ge=0)
    """Steps between checkpoints; 0 keeps only the final model."""
    keep_checkpoints: int = Field(default=1, ge=1)
    """How many of the latest checkpoints stay on disk."""
    tensorboard: bool = True
    """Write TensorBoard events beside the JSON lines."""
    trackers: tuple[Literal["wandb", "trackio", "mlflow", "aim"], ...] = ()
    """Where the figures go as well; each must be installed, and reads its key from its own environment variables."""
    tracker_project: str = "grpo"
    """The project or experiment that a tracker files the run under; the run is named after trainer.output."""
    samples: Literal["group", "all", "text"] = "group"
    """What `samples.jsonl` keeps of a step: its first group token by token, all groups, or the first group's text. A group
    of more than 4,096 tokens leaves its text."""
    save_model: bool = True
    """Write the trained model in Hugging Face's format at the end."""


class DistributedConfig(Section):
    """How several processes share the work. How many there are is the launcher's business: torchrun, accelerate launch."""

    strategy: Literal["auto", "ddp", "fsdp2"] = "auto"
    """`ddp`: every process holds the model. `fsdp2`: weights, gradients and optimizer are cut over the processes. `auto`: what
    `accelerate launch` was told, else ddp."""


class TrainConfig(Section):
    """A whole run."""

    model: ModelConfig = ModelConfig()
    reference: ReferenceConfig = ReferenceConfig()
    task: TaskConfig
    rollout: RolloutConfig = RolloutConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    collapse: CollapseConfig = CollapseConfig()
    eval: EvalConfig = EvalConfig()
    trainer: TrainerConfig = TrainerConfig()
    distributed: DistributedConfig = DistributedConfig()
    lora: LoraConfig | None = None
    """Train an adapter (`lora: {}`) instead of the whole model."""
    distillation: DistillConfig | None = None
    """Learn from a teacher: `distillation: {teachers: http://host:8000}`."""

    @property
    def task_trains(self) -> bool:
        """Whether the task's reward is part of what is minimised."""
        return self.distillation is None or self.distillation.task_reward

    @model_validator(mode="after")
    def _moves_are_at_checkpoints(self) -> Self:
        moves, saves = self.reference.sync_every, self.trainer.checkpoint_every
        if moves and saves and moves % saves:
            raise ValueError(
                f"trainer.checkpoint_every={saves} must divide reference.sync_every={moves}: a run that is killed behind a "
                f"move goes "
                "on from the checkpoint at that very step"
            )
        return self

    @model_validator(mode="after")
    def _portions_are_whole(self) -> Self:
        prompts = self.rollout.prompts_per_step
        if prompts % self.trainer.portions:
            named = f"trainer.gradient_accumulation={self.trainer.gradient_accumulation}"
            if self.trainer.minibatches > 1:
                named += f" times trainer.minibatches={self.trainer.minibatches}"
            raise ValueError(f"{named} must divide rollout.prompts_per_step={prompts}: a group is never cut")
        if self.loss.overlong_buffer > self.rollout.max_new_tokens:
            raise ValueError(
                f"loss.overlong_buffer={self.loss.overlong_buffer} is longer than a completion can be "
                f"(rollout.max_new_tokens={self.rollout.max_new_tokens})"
            )
        if self.rollout.backend == "openai" and self.loss.normalizer != "softmax":
            raise ValueError(
                f"rollout.backend=openai samples from a softmax, which loss.normalizer={self.loss.normalizer} is not: "
                f"set rollout.backend=policy"
            )
        if self.rollout.group_size < 2 and self.task_trains:
            raise ValueError(
                "rollout.group_size=1 leaves every advantage at 0, since an advantage is over the group: sample at least 2"
            )
        return self

    @model_validator(mode="after")
    def _teacher_fits(self) -> Self:
        taught = self.distillation
        if taught is None:
            return self
        if not taught.task_reward:
            if self.rollout.resample:
                raise ValueError(
                    "rollout.resample looks for groups whose rewards differ, and distillation.task_reward=false does not "
                    "train on rewards: set it to 0"
                )
            if self.loss.kl_in == "reward" and self.loss.beta > 0:
                raise ValueError(
                    "loss.kl_in=reward puts the KL into the task's reward, on which distillation.task_reward=false does not "
                    "train: set loss.kl_in=loss"
                )
        if taught.targets is not None and (self.rollout.backend != "policy" or self.rollout.environment is not None):
            raise ValueError(
                "distillation.targets are trained on as they are, and nothing is sampled: leave rollout.backend and "
                "rollout.environment out"
            )
        if self.rollout.backend == "openai" and taught.ids_from in ("student", "union"):
            raise ValueError(
                f"distillation.support={taught.ids_from} takes the student's best tokens from its sampler, and "
                f"rollout.backend=openai does not tell them: set rollout.backend=policy, or support=teacher"
            )
        return self
