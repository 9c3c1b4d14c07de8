"""Hook the orthogonal projection onto the optimizer of a Hugging Face Trainer, whoever made that Trainer.

Sharding: FSDP2 is as OrthoGrad has it. FSDP1 and DeepSpeed ZeRO hand the optimizer flat partitions, along which no dot
product is a weight's, and are refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer
from transformers import Trainer

from grpo_training.config import Granularity
from grpo_training.hf.architectures import architecture_of
from grpo_training.hf.loss import base_of
from grpo_training.orthograd import FLAG, attach, parameter_groups


def project_optimizer(
    trainer: Trainer, optimizer: Optimizer, model: nn.Module, *, skip: Iterable[str] | None, granularity: Granularity
) -> None:
    """Project the gradients of every step of `optimizer`, a torch optimizer without accelerate's wrapper.

    skip: see `skipped_parameters`; None skips norms and biases of architectures in MODEL_CONFIG_MAPPING. Groups are cut
    in two where they must be, so call it before a scheduler is made. Raises ValueError for sharding that cannot work.
    """
    refuse_partitions(trainer)
    if skip is None:
        known = architecture_of(base_of(model))
        found = skipped_parameters(model, known.skip_param_types, strict=False) if known else set()
    else:
        found = skipped_parameters(model, skip)
    if found:
        optimizer.param_groups[:] = flagged(optimizer.param_groups, found)
    attach(optimizer, granularity=granularity)


def refuse_partitions(trainer: Trainer) -> None:
    """ValueError, with what to do instead, under DeepSpeed or FSDP1."""
    if trainer.is_deepspeed_enabled:
        raise ValueError(
            "the orthogonal gradient does not work with DeepSpeed ZeRO: its optimizer sees flat partitions of all "
            "weights, along which nothing can be projected. Use FSDP2 (fsdp_version: 2), DDP or one process"
        )
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
