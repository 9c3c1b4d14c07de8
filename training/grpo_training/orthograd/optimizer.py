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

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from grpo_training.config import Granularity
from grpo_training.orthograd.hook import FLAG, Closure, Projection, attach, innermost, project
from grpo_training.orthograd.projection import orthogonal

__all__ = ["FLAG", "OrthoGrad", "attach", "orthogonal", "parameter_groups", "project"]


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


class OrthoGrad(Optimizer):
    """An optimizer around an optimizer: `OrthoGrad(torch.optim.AdamW(parameters, lr=1e-3))`.

    Groups, state, defaults and state_dict are those of the optimizer inside, so schedulers, gradient scalers and
    checkpoints go on working, and a checkpoint can be loaded with or without the wrapper. It can be copied and pickled;
    the copy projects too. Raises TypeError for what is not a torch optimizer.
    """

    # A scaler that this told of a fused optimizer inside would leave the unscaling to it, and tell the wrapper how.
    _step_supports_amp_scaling = False

    def __init__(self, base: Optimizer, *, granularity: Granularity = "tensor") -> None:
        if not isinstance(base, Optimizer):
            raise TypeError(
                f"OrthoGrad goes around an optimizer, OrthoGrad(AdamW(parameters)); got {type(base).__name__}"
            )
        # Optimizer.__init__ would build a second set of groups and state; everything here is the base optimizer's.
        self.base = base
        self._granularity: Granularity = granularity
        self._handle = attach(base, granularity=granularity)

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.base.param_groups = groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        return self.base.state

    @state.setter
    def state(self, state: Any) -> None:
        self.base.state = state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        return self.base.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self.base.defaults = defaults

    def __getattr__(self, name: str) -> Any:
        """Hooks on state dicts, `train()` of a schedule-free optimizer and the like are those of the optimizer inside."""
        if name == "base" or (name.startswith("_") and not name.startswith("_optimizer_")):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.base, name)

    def __getstate__(self) -> dict[str, Any]:
        # `step` is there where a scheduler has put its own around it; that one is bound to this very object.
        left_behind = ("_handle", "step", "_opt_called")
        return {name: value for name, value in vars(self).items() if name not in left_behind}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Not Optimizer.__setstate__, which would have torch call hooks around this class's step, for all its instances.
        vars(self).update(state)
        hooks = innermost(self.base)._optimizer_step_pre_hooks
        if not any(isinstance(hook, Projection) for hook in hooks.values()):  # a shallow copy shares the optimizer
            self._handle = attach(self.base, granularity=self._granularity)

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

    step.hooked = True  # type: ignore[attr-defined]  # says to torch that there is nothing to wrap: the base's step is
