"""OrthoGrad: take out of each gradient the part that lies along its weights, over any torch optimizer.

Once a network separates its training data, plain gradients mostly scale the weights up: the loss falls, nothing is
learned, and the softmax saturates. Projecting each gradient onto the plane orthogonal to its weights leaves the
directions that change what the network computes (Prieto et al., "Grokking at the Edge of Numerical Stability",
ICLR 2025, arXiv 2501.04697):

    g_perp = g - (w.g) / (w.w) w,     g <- g_perp |g| / |g_perp|

Two doors to one implementation:
    OrthoGrad(AdamW(...))       an optimizer around an optimizer
    attach(optimizer)           a hook on an optimizer that somebody else made; returns the handle that removes it
What is skipped is a flag of the parameter group (`orthograd`, True when absent, so checkpoints from before load);
`parameter_groups` makes groups by name and by module type. One-element tensors are always skipped: all of their gradient
lies along the weight, so nothing, or only rounding noise, would be left.

Of a sharded parameter (DTensor: FSDP2, tensor parallelism) the inner products and norms are those of the whole tensor: the
ranks add up what they have, so each gets its shard of the projection that one process would make. What hands the optimizer
flat pieces of several weights (FSDP1, ZeRO) cannot be told from an ordinary vector here; its users must refuse it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from grpo_training.config import Granularity
from grpo_training.projection import orthogonal, projected
from grpo_training.sharding import aligned, local

__all__ = ["FLAG", "OrthoGrad", "attach", "orthogonal", "parameter_groups", "project"]

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


def parameter_groups(
    model: nn.Module,
    *,
    skip_names: Iterable[str] = (),
    skip_types: Iterable[str] = (),
    **defaults: Any,
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer: those to project, and those to leave alone (flagged `orthograd: False`).

    skip_names: left alone when the parameter's name contains one of them. skip_types: left alone when the parameter
    belongs to a module of a class of that name or of a subclass. Raises ValueError for an entry that matches nothing:
    it is a misspelling.
    """
    skip_names, skip_types = list(skip_names), list(skip_types)
    unused = {*skip_names, *skip_types}
    skipped: set[nn.Parameter] = set()
    for module in model.modules():
        matching = {cls.__name__ for cls in type(module).__mro__} & set(skip_types)
        if matching:
            unused -= matching
            skipped.update(module.parameters(recurse=False))
    for name, parameter in model.named_parameters():
        matching = {part for part in skip_names if part in name}
        if matching:
            unused -= matching
            skipped.add(parameter)
    if unused:
        raise ValueError(f"orthograd: nothing in the model matches {', '.join(sorted(unused))}")
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p not in skipped], FLAG: True, **defaults},
        {"params": [p for p in trained if p in skipped], FLAG: False, **defaults},
    ]
    return [group for group in groups if group["params"]]


def attach(optimizer: Optimizer, *, granularity: Granularity = "tensor") -> RemovableHandle:
    """Project gradients before every step of an optimizer made elsewhere. `handle.remove()` takes the hook off again.

    A closure given to `step` is wrapped, since gradients exist only once it has run. Parameter groups are read anew at
    each step. A gradient that was projected and has not changed since is not projected again: an optimizer whose `step`
    calls its base class's fires the hook twice.
    """
    seen: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def fresh() -> list[dict[str, Any]]:
        return [
            {**group, "params": [p for p in group["params"] if not _unchanged(seen, p)]}
            for group in optimizer.param_groups
        ]

    def run() -> None:
        project(fresh(), granularity=granularity)
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    seen[p] = (weakref.ref(p.grad), _version(p.grad), _version(p))

    def hook(
        _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        this, *rest = args  # torch hands over the arguments of the unbound `step`
        closure = kwargs.get("closure", rest[0] if rest else None)
        if closure is None:
            run()
            return None
        wrapped = _after(closure, run)
        return ((this, wrapped, *rest[1:]), kwargs) if rest else (args, {**kwargs, "closure": wrapped})

    return optimizer.register_step_pre_hook(hook)


class OrthoGrad(Optimizer):
    """An optimizer around an optimizer: `OrthoGrad(torch.optim.AdamW(parameters, lr=1e-3))`.

    Groups, state, defaults and state_dict are those of the optimizer inside, so schedulers, gradient scalers and
    checkpoints go on working, and a checkpoint can be loaded with or without the wrapper.
    """

    def __init__(self, base: Optimizer, *, granularity: Granularity = "tensor") -> None:
        # Optimizer.__init__ would build a second set of groups and state; everything here is the base optimizer's.
        self.base = base
        self._handle = attach(base, granularity=granularity)

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.base.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        return self.base.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        return self.base.defaults

    def step(self, closure: Closure | None = None) -> Any:  # type: ignore[override]
        """One step of the optimizer inside, on projected gradients."""
        return self.base.step() if closure is None else self.base.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.base.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.base.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.base.load_state_dict(state_dict)

    def register_step_pre_hook(self, hook: Any) -> RemovableHandle:
        return self.base.register_step_pre_hook(hook)

    def register_step_post_hook(self, hook: Any) -> RemovableHandle:
        return self.base.register_step_post_hook(hook)

    def __repr__(self) -> str:
        return f"OrthoGrad({self.base!r})"


def _after(closure: Closure, then: Callable[[], None]) -> Closure:
    def wrapped() -> Any:
        with torch.enable_grad():
            loss = closure()
        then()
        return loss

    return wrapped


def _unchanged(seen: WeakIdKeyDictionary, p: Tensor) -> bool:
    if p.grad is None or p not in seen:
        return False
    grad, grad_version, weight_version = seen[p]
    return grad() is p.grad and grad_version == _version(p.grad) and weight_version == _version(p)


def _version(t: Tensor) -> int:
    """FSDP2 and sharded optimizers write to the shard in place, of which the DTensor around it knows nothing."""
    return local(t)._version


def _takes_part(p: Tensor) -> bool:
    if p.grad is None or p.numel() <= 1:
        return False
    if p.grad.is_sparse:
        raise ValueError("OrthoGrad does not support sparse gradients: the projection is dense")
    return True
