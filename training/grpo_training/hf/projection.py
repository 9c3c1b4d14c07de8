"""Hook the orthogonal projection onto the optimizer of a Hugging Face Trainer, whoever made that Trainer.

Sharding: FSDP2 is as OrthoGrad has it. DeepSpeed ZeRO hands the optimizer flat partitions; there the hook goes around the
engine's step instead, which exists once training begins (`ProjectZero`). FSDP1 flattens the weights of a layer into one
parameter; torch has replaced it by FSDP2, which a changed `fsdp_version` gives, and it is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer
from transformers import Trainer, TrainerCallback

from grpo_training.config import Granularity
from grpo_training.hf.architectures import architecture_of
from grpo_training.hf.loss import base_of
from grpo_training.orthograd import FLAG, attach, parameter_groups
from grpo_training.orthograd.zero import attach_zero


def project_optimizer(
    trainer: Trainer, optimizer: Optimizer, model: nn.Module, *, skip: Iterable[str] | None, granularity: Granularity
) -> None:
    """Project the gradients of every step of `optimizer`, a torch optimizer without accelerate's wrapper.

    skip: see `skipped_parameters`; None skips norms and biases of architectures in MODEL_CONFIG_MAPPING. Groups are cut
    in two where they must be, so call it before a scheduler is made. Raises ValueError for sharding that cannot work.
    """
    refuse_partitions(trainer)
    found = left_alone(model, skip)
    if found:
        optimizer.param_groups[:] = flagged(optimizer.param_groups, found)
    attach(optimizer, granularity=granularity)


class ProjectZero(TrainerCallback):
    """Hooks the projection onto the engine that DeepSpeed makes when training begins, whoever made its optimizer."""

    def __init__(self, trainer: Trainer, *, skip: Iterable[str] | None, granularity: Granularity) -> None:
        """Raises ValueError for an entry of `skip` that matches nothing."""
        self._trainer = trainer
        self._granularity: Granularity = granularity
        assert trainer.model is not None
        self._left_alone = left_alone(trainer.model, skip)
        self._engine: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        wrapped = self._trainer.accelerator.deepspeed_engine_wrapped
        if wrapped is None:
            raise RuntimeError("DeepSpeed is on and has made no engine: the orthogonal gradient would not be applied")
        if wrapped.engine is self._engine:
            return
        self._engine = wrapped.engine
        chosen = [p for p in self._engine.module.parameters() if p not in self._left_alone]
        attach_zero(self._engine, chosen, granularity=self._granularity)


def left_alone(model: nn.Module, skip: Iterable[str] | None) -> set[nn.Parameter]:
    """What keeps its gradient: see `skipped_parameters`; None is as the architecture has it."""
    if skip is not None:
        return skipped_parameters(model, skip)
    known = architecture_of(base_of(model))
    return skipped_parameters(model, known.skip_param_types, strict=False) if known else set()


def refuse_partitions(trainer: Trainer) -> None:
    """ValueError, with what to do instead, under FSDP1."""
    if trainer.is_fsdp_enabled and not trainer.accelerator.is_fsdp2:
        raise ValueError(
            "the orthogonal gradient does not work with FSDP1: it flattens many weights into one parameter. "
            "Set fsdp_version to 2"
        )


def skipped_parameters(model: nn.Module, types: Iterable[str], *, strict: bool = True) -> set[nn.Parameter]:
    """Parameters whose name contains one of `types`, or that belong to a module of a class (or subclass) of that name.

    Raises ValueError for an entry that matches neither, unless not strict: it is a misspelling.
    """
    found: set[nn.Parameter] = set()
    classes = {cls.__name__ for module in model.modules() for cls in type(module).__mro__}
    names = [name for name, _ in model.named_parameters()]
    for entry in types:
        by_type = [entry] if entry in classes else []
        by_name = [entry] if any(entry in name for name in names) else []
        if not by_type and not by_name:
            if strict:
                raise ValueError(
                    f"skip_param_types: nothing in the model matches {entry!r}, neither a name nor a class"
                )
            continue
        for group in parameter_groups(model, skip_names=by_name, skip_types=by_type):
            if not group[FLAG]:
                found.update(group["params"])
    return found


def flagged(groups: Iterable[dict[str, Any]], skip: set[nn.Parameter]) -> list[dict[str, Any]]:
    """The same groups, each cut in two where only some of its parameters are to be projected."""
    result = []
    for group in groups:
        for project in (True, False):
            params = [p for p in group["params"] if (p not in skip) is project]
            if params:
                result.append({**group, "params": params, FLAG: project})
    return result
