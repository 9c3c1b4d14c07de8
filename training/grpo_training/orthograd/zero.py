"""The projection under DeepSpeed ZeRO, whose optimizer sees flat partitions of all weights in place of the weights.

Between backward and the engine's step DeepSpeed itself gives each weight and each gradient whole
(`deepspeed.utils.safe_get_full_grad`, `safe_get_full_fp32_param`), and takes a gradient back: there the projection is what it
is in one process, at stages 0 to 3. Under accumulation the engine's optimizer steps only when all micro batches are in. A
loss scale, and clipping to a norm, which come after, scale a gradient and so commute with it.

Costs a collective or two for each weight and step, and the memory of one weight and its gradient in float32 (`global`: of
all of them).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from grpo_training.config import Granularity
from grpo_training.orthograd.projection import projected


def attach_zero(
    engine: Any, parameters: Iterable[nn.Parameter], *, granularity: Granularity = "tensor"
) -> Callable[[], None]:
    """Project the gradients of `parameters` before every step of a DeepSpeed engine's optimizer; returns what undoes it.

    engine: what `deepspeed.initialize` returned. parameters: of its model, in the same order on every rank.
    """
    chosen = [p for p in parameters if p.requires_grad and _size(p) > 1]
    optimizer = engine.optimizer
    step = optimizer.step

    @wraps(step)
    def projecting(*args: Any, **kwargs: Any) -> Any:
        project_zero(chosen, granularity=granularity)
        return step(*args, **kwargs)

    optimizer.step = projecting

    def undo() -> None:
        optimizer.step = step

    return undo


@torch.no_grad()
def project_zero(parameters: Iterable[nn.Parameter], *, granularity: Granularity = "tensor") -> None:
    """Project the gradients that a backward pass of the engine has left; a collective, on every rank in the same order."""
    from deepspeed.utils import (  # pyright: ignore[reportMissingImports]
        safe_get_full_fp32_param,
        safe_get_full_grad,
        safe_set_full_grad,
    )

    held: list[tuple[nn.Parameter, Tensor, Tensor]] = []
    for parameter in parameters:
        gradient = safe_get_full_grad(parameter)
        if gradient is None:
            continue  # frozen, or unused in this step
        weight = safe_get_full_fp32_param(parameter)
        whole = parameter.detach() if weight is None else weight  # stage 0 has each weight as it is
        if granularity == "global":
            held.append((parameter, whole.clone(), gradient.clone()))
            continue
        [new] = projected([whole], [gradient], rows=granularity == "row")
        safe_set_full_grad(parameter, new)
    if held:
        new = projected([weight for _, weight, _ in held], [grad for _, _, grad in held], as_one=True)
        for (parameter, _, _), value in zip(held, new, strict=True):
            safe_set_full_grad(parameter, value)


def _size(parameter: nn.Parameter) -> int:
    """Of the whole weight: stage 3 leaves an empty tensor in its place."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))
