"""Put StableMax in place of `torch.nn.functional.cross_entropy`, for everybody, and take it out again.

    with patch_cross_entropy():
        train()                        F.cross_entropy, nn.CrossEntropyLoss and what calls them are StableMax's

    enable_cross_entropy_patch()       the same until disable_cross_entropy_patch()

This is a global switch: every library in the process gets the other loss. Where a model's loss can be set
(`model.loss_function`), set that instead, as `grpo_training.hf` does. Code that did
`from torch.nn.functional import cross_entropy` holds torch's own function and is not reached.

Somebody else's patch (Liger's, for one) is never patched over, and never taken out: PatchConflict says whose it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from grpo_numerics import stablemax_cross_entropy
from torch import Tensor, nn

Loss = Callable[..., Tensor]

_MARK = "__grpo_patch__"
_RIVALS = ("liger_kernel", "cut_cross_entropy")


class PatchConflict(RuntimeError):
    """Another patch of the same loss is in place; the message names it."""


class CrossEntropyPatch:
    """One patch that is in place. `remove()` puts back what was there before it."""

    def __init__(self, loss: Loss) -> None:
        self._before = F.cross_entropy

        @functools.wraps(loss)
        def cross_entropy(*args: Any, **kwargs: Any) -> Tensor:
            return loss(*args, **kwargs)

        setattr(cross_entropy, _MARK, self)
        self._installed = cross_entropy
        F.cross_entropy = cross_entropy

    @property
    def active(self) -> bool:
        """Whether F.cross_entropy is this patch's function now."""
        return F.cross_entropy is self._installed

    def remove(self) -> None:
        """Put back what was there. Raises PatchConflict when somebody has patched over this patch since."""
        if not self.active:
            raise PatchConflict(
                f"F.cross_entropy is {describe(F.cross_entropy)} now and no longer the patch that is to be removed: "
                f"remove that first"
            )
        F.cross_entropy = self._before


def enable_cross_entropy_patch(
    loss: Loss = stablemax_cross_entropy, *, model: nn.Module | None = None
) -> CrossEntropyPatch:
    """Make `loss` torch's cross-entropy until the patch is removed.

    loss: takes the arguments of F.cross_entropy. model: looked through for patches that would go around this one.
    Raises PatchConflict when anything stands in the way, this very patch included.
    """
    if found := conflicts(model):
        raise PatchConflict("F.cross_entropy cannot be patched: " + "; ".join(found))
    return CrossEntropyPatch(loss)


def disable_cross_entropy_patch() -> None:
    """Take our patch out; nothing happens when there is none. Raises PatchConflict for somebody else's."""
    patch = getattr(F.cross_entropy, _MARK, None)
    if patch is not None:
        patch.remove()
    elif not _is_torchs(F.cross_entropy):
        raise PatchConflict(f"F.cross_entropy is {describe(F.cross_entropy)}: who put it there must remove it")


@contextmanager
def patch_cross_entropy(
    loss: Loss = stablemax_cross_entropy, *, model: nn.Module | None = None
) -> Iterator[CrossEntropyPatch]:
    """`enable_cross_entropy_patch` for the length of a block, whatever ends it."""
    patch = enable_cross_entropy_patch(loss, model=model)
    try:
        yield patch
    finally:
        patch.remove()


def conflicts(model: nn.Module | None = None) -> list[str]:
    """Reasons why a patch of F.cross_entropy would replace, or be bypassed by, another one. Empty: none."""
    found = []
    if getattr(F.cross_entropy, _MARK, None) is not None:
        found.append("it is patched already; call disable_cross_entropy_patch() first")
    elif not _is_torchs(F.cross_entropy):
        found.append(f"it is {describe(F.cross_entropy)}; turn that patch off")
    if model is not None and (reason := bypass(model)):
        found.append(reason)
    return found


def bypass(model: nn.Module) -> str | None:
    """Why a model would not use a patch: its forward is one of those that have a fused softmax loss. None: it would."""
    for module in model.modules():
        source = getattr(module.forward, "__module__", None) or ""
        if source.partition(".")[0] in _RIVALS:
            return f"{type(module).__name__}.forward is {describe(module.forward)}, which has a softmax loss of its own"
    return None


def describe(function: Callable[..., Any]) -> str:
    """module.name of a function."""
    name = getattr(function, "__qualname__", type(function).__name__)
    return f"{getattr(function, '__module__', None) or 'unknown'}.{name}"


def _is_torchs(function: Callable[..., Any]) -> bool:
    """By where its code was defined: a name can be imitated, as functools.wraps does."""
    code = getattr(function, "__globals__", None)
    return code is F.__dict__
