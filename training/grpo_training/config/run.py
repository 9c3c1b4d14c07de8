"""The whole of a run, and how it is read."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from .data import EvalConfig, RolloutConfig, TaskConfig
from .errors import ConfigError
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
    """Portions that a step's groups are cut into, one forward and backward each. Must divide prompts_per_step."""
    iterations: int = Field(default=1, ge=1)
    """Optimizer steps on each batch of rollouts; from the second on the importance ratio is at work."""
    output: Path = Path("runs/train")
    """Directory for metrics, samples, checkpoints and the report."""
    checkpoint_every: int = Field(default=50, ge=0)
    """Steps between checkpoints; 0 keeps only the final model."""
    keep_checkpoints: int = Field(default=1, ge=1)
    """How many of the latest checkpoints stay on disk."""
    tensorboard: bool = True
    """Write TensorBoard events beside the JSON lines."""
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

    @model_validator(mode="after")
    def _portions_are_whole(self) -> Self:
        prompts, portions = self.rollout.prompts_per_step, self.trainer.gradient_accumulation
        if prompts % portions:
            raise ValueError(
                f"trainer.gradient_accumulation={portions} must divide rollout.prompts_per_step={prompts}: "
                f"a group is never cut"
            )
        if self.rollout.backend == "openai" and self.loss.normalizer != "softmax":
            raise ValueError(
                f"rollout.backend=openai samples from a softmax, which loss.normalizer={self.loss.normalizer} is not: "
                f"set rollout.backend=policy"
            )
        if self.rollout.group_size < 2 and self.loss.scale_advantages != "batch":
            raise ValueError(
                "rollout.group_size=1 leaves every advantage at 0: sample at least 2, or set loss.scale_advantages=batch"
            )
        return self


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read YAML, apply `section.field=value` overrides (values in YAML's own notation), check everything.

    Raises ConfigError, naming every field that is wrong.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"no configuration file at {path}") from error
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold sections (model:, task:, ...), not a {type(values).__name__}")
    for override in overrides:
        _apply(values, override)
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error))) from error


def _apply(values: dict[str, Any], override: str) -> None:
    """Set one `a.b.c=value` in nested dictionaries."""
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {override}: write section.field=value, such as optimizer.lr=1e-5")
    for key in keys[:-1]:
        inner = values.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {override}: {key} is a single value and has no field {keys[-1]}")
        values = inner
    values[keys[-1]] = yaml.safe_load(text)


def _explain(error: ValidationError) -> Iterator[str]:
    """One line for each fault: the field's path, what is wrong, and for an unknown field the nearest known one."""
    for fault in error.errors():
        where = ".".join(str(part) for part in fault["loc"]) or "configuration"
        if fault["type"] == "extra_forbidden":
            known = _fields_at(fault["loc"][:-1])
            near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
            yield f"{where}: there is no such field; {hint}"
        else:
            yield f"{where}: {fault['msg']}"


def _fields_at(location: Sequence[int | str]) -> list[str]:
    section: type[BaseModel] = TrainConfig
    for key in location:
        if str(key) not in section.model_fields:
            continue  # a name that the user chose, as in eval.tasks
        annotation = section.model_fields[str(key)].annotation
        candidates = [annotation, *get_args(annotation)]
        section = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(section.model_fields)
