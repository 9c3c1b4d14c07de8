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

Sharded parameters (DTensor, FSDP, ZeRO) are refused: a dot product over a shard is not the tensor's.
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

FLAG = "orthograd"
Closure = Callable[[], Any]


def orthogonal(weight: Tensor, grad: Tensor, *, rows: bool = False) -> Tensor:
    """The gradient without its part along the weight, at its old norm. Same shape and dtype as `grad`.

    rows: project each row (first dimension) by itself; a vector counts as one row. Unchanged where the weight is 0, where
    the gradient is 0 and where it is not finite; 0 where the gradient is parallel to the weight within rounding, because
    rescaling would turn the rounding error into a full-size step.
    """
    shape = (weight.shape[0], -1) if rows and weight.dim() > 1 else (1, -1)
    w, g = _compute(weight).reshape(shape), _compute(grad).reshape(shape)  # (R, N)
    ww, gg = (w * w).sum(-1, keepdim=True), (g * g).sum(-1, keepdim=True)
    perp = _reject(w, g, ww)
    return _finish(grad, g, perp, ww, gg, (perp * perp).sum(-1, keepdim=True))


def project(groups: Iterable[Mapping[str, Any]], *, granularity: Granularity = "tensor") -> None:
    """Project, in place, the gradients of every parameter in `groups` whose group is not flagged `orthograd: False`."""
    with torch.no_grad():
        params = [p for group in groups if group.get(FLAG, True) for p in group["params"] if _takes_part(p)]
        if granularity == "global":
            _project_together(params)
            return
        for p in params:
            assert p.grad is not None
            p.grad.copy_(orthogonal(p, p.grad, rows=granularity == "row"))


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
                    seen[p] = (weakref.ref(p.grad), p.grad._version, p._version)

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
    return grad() is p.grad and grad_version == p.grad._version and weight_version == p._version


def _takes_part(p: Tensor) -> bool:
    if p.grad is None or p.numel() <= 1:
        return False
    if isinstance(p, DTensor):
        raise ValueError(
            "OrthoGrad does not support sharded parameters (DTensor): a shard's projection is not the tensor's"
        )
    if p.grad.is_sparse:
        raise ValueError("OrthoGrad does not support sparse gradients: the projection is dense")
    return True


def _project_together(params: list[Tensor]) -> None:
    """All weights as one vector against all gradients as one vector."""
    if not params:
        return
    ws = [_compute(p).reshape(1, -1) for p in params]
    gs = [_compute(p.grad).reshape(1, -1) for p in params if p.grad is not None]

    def dot(a: list[Tensor], b: list[Tensor]) -> Tensor:
        return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum().reshape(1, 1)

    ww, gg = dot(ws, ws), dot(gs, gs)
    perps = gs
    for _ in range(2):
        along = dot(ws, perps) / ww.clamp(min=_tiny(ww))
        perps = [g - along * w for g, w in zip(perps, ws, strict=True)]
    pp = dot(perps, perps)
    for p, g, perp in zip(params, gs, perps, strict=True):
        assert p.grad is not None
        p.grad.copy_(_finish(p.grad, g, perp, ww, gg, pp))


def _reject(w: Tensor, g: Tensor, ww: Tensor) -> Tensor:
    """g minus its part along w, per row. Twice: one pass leaves a cosine of 1e-2 when they are nearly parallel."""
    for _ in range(2):
        g = g - (w * g).sum(-1, keepdim=True) / ww.clamp(min=_tiny(ww)) * w
    return g


def _finish(grad: Tensor, g: Tensor, perp: Tensor, ww: Tensor, gg: Tensor, pp: Tensor) -> Tensor:
    """Rescale to the old norm, with the guards; chosen by `where`, so that a GPU need not be waited for."""
    noise = (4 * torch.finfo(g.dtype).eps) ** 2 * gg
    scaled = torch.where(pp > noise, perp * (gg / pp.clamp(min=_tiny(pp))).sqrt(), torch.zeros_like(perp))
    usable = (ww > 0) & (gg > 0) & torch.isfinite(gg) & torch.isfinite(ww)
    return torch.where(usable, scaled, g).reshape(grad.shape).to(grad.dtype)


def _compute(t: Tensor) -> Tensor:
    """fp32 or better."""
    return t.detach() if t.dtype in (torch.float32, torch.float64) else t.detach().float()


def _tiny(t: Tensor) -> float:
    return torch.finfo(t.dtype).tiny
