"""The projection as a hook: before every step of an optimizer that somebody else made, its gradients are projected.

`attach` is the room's second door; the first, `OrthoGrad`, is built on it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from grpo_training.config import Granularity
from grpo_training.orthograd.projection import projected
from grpo_training.sharding import aligned, local

FLAG = "orthograd"
_TOGETHER = 64  # sharded tensors to a collective: few enough that their projections beside the gradients are small
Closure = Callable[[], Any]


def project(groups: Iterable[Mapping[str, Any]], *, granularity: Granularity = "tensor") -> None:
    """Project, in place, the gradients of every parameter in `groups` whose group is not flagged `orthograd: False`.

    With sharded parameters this is a collective: every rank calls it, with the same parameters in the same order.
    """
    with torch.no_grad():
        params = [p for group in groups if group.get(FLAG, True) for p in group["params"] if _takes_part(p)]
        if granularity == "global":
            size = max(len(params), 1)
        else:
            size = _TOGETHER if any(isinstance(p, DTensor) for p in params) else 1
        for start in range(0, len(params), size):
            batch = params[start : start + size]
            grads = []
            for p in batch:
                assert p.grad is not None
                if (grad := aligned(p.grad, p)) is not p.grad:
                    p.grad = grad
                grads.append(grad)
            new = projected(batch, grads, rows=granularity == "row", as_one=granularity == "global")
            for grad, value in zip(grads, new, strict=True):
                local(grad).copy_(value)


def attach(optimizer: Optimizer, *, granularity: Granularity = "tensor") -> RemovableHandle:
    """Project gradients before every step of an optimizer made elsewhere. `handle.remove()` takes the hook off again.

    A closure given to `step` is wrapped, since gradients exist only once it has run. Parameter groups are read anew at
    each step. A gradient that was projected and has not changed since is not projected again: an optimizer whose `step`
    calls its base class's fires the hook twice. Around accelerate's wrapper it is the optimizer inside that is hooked.
    torch leaves hooks behind when an optimizer is copied or pickled: attach to the copy again (`OrthoGrad` does).
    """
    return innermost(optimizer).register_step_pre_hook(Projection(granularity))


def innermost(optimizer: Optimizer) -> Optimizer:
    """The optimizer on which torch fires hooks: a wrapper that was never initialised as an optimizer has none."""
    while "_optimizer_step_pre_hooks" not in vars(optimizer):
        inner = vars(optimizer).get("optimizer", vars(optimizer).get("base"))
        if not isinstance(inner, Optimizer):
            raise TypeError(f"a torch optimizer is wanted, which {type(optimizer).__name__} is not")
        optimizer = inner
    return optimizer


class Projection:
    """The hook. Can be copied and pickled; a copy has seen nothing yet."""

    def __init__(self, granularity: Granularity) -> None:
        self.granularity: Granularity = granularity
        self._seen: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __call__(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        this, *rest = args  # torch hands over the arguments of the unbound `step`
        closure = kwargs.get("closure", rest[0] if rest else None)
        if closure is None:
            self._run(optimizer)
            return None
        wrapped = _after(closure, lambda: self._run(optimizer))
        return ((this, wrapped, *rest[1:]), kwargs) if rest else (args, {**kwargs, "closure": wrapped})

    def __getstate__(self) -> dict[str, Any]:
        return {"granularity": self.granularity}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["granularity"])

    def _run(self, optimizer: Optimizer) -> None:
        fresh = [
            {**group, "params": [p for p in group["params"] if not self._unchanged(p)]}
            for group in optimizer.param_groups
        ]
        project(fresh, granularity=self.granularity)
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._seen[p] = (weakref.ref(p.grad), _version(p.grad), _version(p))

    def _unchanged(self, p: Tensor) -> bool:
        if p.grad is None or p not in self._seen:
            return False
        grad, grad_version, weight_version = self._seen[p]
        return grad() is p.grad and grad_version == _version(p.grad) and weight_version == _version(p)


def _after(closure: Closure, then: Callable[[], None]) -> Closure:
    def wrapped() -> Any:
        with torch.enable_grad():
            loss = closure()
        then()
        return loss

    return wrapped


def _version(t: Tensor) -> int:
    """FSDP2 and sharded optimizers write to the shard in place, of which the DTensor around it knows nothing."""
    return local(t)._version


def _takes_part(p: Tensor) -> bool:
    if p.grad is None or p.numel() <= 1:
        return False
    if p.grad.is_sparse:
        raise ValueError("OrthoGrad does not support sparse gradients: the projection is dense")
    return True
