"""The elementwise part of a layer in fewer launches: norms, rotary embedding and SwiGLU, on the instance, kept only if right.

In eager torch they are most of a layer's launches and a fifth of a GPU's time. Liger-Kernel has them as kernels; where it is
not installed, or knows nothing of the model, each layer is compiled by torch, with attention left as it is. Nothing is taken
by its name alone: what a module computes is compared with the formula that replaces it, and then the whole model's scores with
those that it gave before. Classes and modules of transformers stay as they were; `Patches.undo` leaves no trace on the model.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from types import FunctionType, MethodType
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

log = logging.getLogger(__name__)

Casting = Literal["llama", "gemma"]  # whether a norm is rounded before or after it is multiplied by its weight
_ROTARY = "apply_rotary_pos_emb"


class Kernels(Protocol):
    """What replaces the parts of a layer."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, offset: float, casting: Casting) -> Tensor: ...

    def silu_mul(self, gate: Tensor, up: Tensor) -> Tensor: ...

    def rope(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *more: Any) -> tuple[Tensor, Tensor]: ...


@dataclass
class Patches:
    """Forwards that were set on instances."""

    modules: list[nn.Module] = field(default_factory=lambda: [])

    def set(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        """`module` computes this from now on."""
        module.forward = forward
        self.modules.append(module)

    def undo(self) -> None:
        """Every module computes what its class says."""
        for module in self.modules:
            del module.forward
        self.modules.clear()


def keep_if_right(body: nn.Module, ways: dict[str, Callable[[nn.Module], Patches]], right: Callable[[], bool]) -> str:
    """The first way that changes something and leaves the scores right stays on; "" where none does. What a way or the scores
    raise is an answer, too: the next one is tried on the model as it was."""
    for name, way in ways.items():
        patches = Patches()
        try:
            patches = way(body)
            if not patches.modules:
                continue
            if right():
                log.info("%d parts of the model's layers are fused by %s", len(patches.modules), name)
                return name
            log.warning("layers fused by %s change the scores of this model: they stay as they are", name)
        except Exception as error:  # noqa: BLE001 - compilers raise what they like
            log.warning(
                "layers cannot be fused by %s (%s: %.200s): they stay as they are", name, type(error).__name__, error
            )
        patches.undo()
    return ""


def ways_on(device_type: str) -> dict[str, Callable[[nn.Module], Patches]]:
    """What may be tried on a device: nothing but on a GPU, where launches count."""
    if device_type != "cuda":
        return {}
    ways: dict[str, Callable[[nn.Module], Patches]] = {}
    if find_spec("liger_kernel") is not None:
        from .liger import LigerKernels

        ways["Liger-Kernel"] = lambda body: by_kernels(body, LigerKernels())
    ways["torch.compile"] = by_compiler
    return ways


def by_kernels(body: nn.Module, kernels: Kernels) -> Patches:
    """Replace every norm, SwiGLU and rotary embedding that computes exactly what a kernel does."""
    patches = Patches()
    try:
        for module in list(body.modules()):
            if (
                forward := _norm(module, kernels) or _swiglu(module, kernels) or _attention(module, kernels)
            ) is not None:
                patches.set(module, forward)
    except BaseException:
        patches.undo()
        raise
    return patches


def by_compiler(body: nn.Module, backend: str = "inductor") -> Patches:
    """Compile each layer for any number of rows. Attention is a call that the compiler does not look into."""
    from grpo_numerics.packed import NAME, attention_forward
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, torch.compiler.disable(attention_forward))
    patches = Patches()
    for layer in _layers(body):
        patches.set(layer, cast(Any, torch.compile(layer.forward, dynamic=True, backend=backend)))
    return patches


def _layers(body: nn.Module) -> Iterator[nn.Module]:
    """The longest list of modules of one class that attend."""
    lists = [m for m in body.modules() if isinstance(m, nn.ModuleList) and len({type(x) for x in m}) == 1]
    attending = [m for m in lists if any("attn" in name or "attention" in name for name, _ in m[0].named_children())]
    yield from max(attending, key=len, default=nn.ModuleList())


def _norm(module: nn.Module, kernels: Kernels) -> Callable[..., Any] | None:
    weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", getattr(module, "eps", None))
    own = list(module.parameters())
    if not isinstance(weight, nn.Parameter) or weight.dim() != 1 or len(own) != 1 or not isinstance(eps, float):
        return None
    x = _sample(len(weight), weight)
    exact = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
    kinds: dict[tuple[float, Casting], Tensor] = {
        (0.0, "llama"): weight * exact.to(x.dtype),
        (1.0, "gemma"): (exact * (1.0 + weight.float())).to(x.dtype),
        (0.0, "gemma"): (exact * weight.float()).to(x.dtype),
    }
    found = _computed(module, x)
    for (offset, casting), expected in kinds.items():
        if found is not None and torch.equal(found, expected):
            return lambda x: kernels.rms_norm(x, weight, eps, offset, casting)
    return None


def _swiglu(module: nn.Module, kernels: Kernels) -> Callable[..., Any] | None:
    parts: list[Any] = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    gate, up, down = parts
    width, weight = getattr(gate, "in_features", None), getattr(gate, "weight", None)
    if not isinstance(width, int) or not isinstance(weight, Tensor):
        return None
    if not all(isinstance(part, nn.Module) for part in parts):
        return None
    x = _sample(width, weight)
    with torch.no_grad():
        expected = down(F.silu(gate(x)) * up(x))
    found = _computed(module, x)
    if found is None or not torch.equal(found, expected):
        return None
    return lambda x: down(kernels.silu_mul(gate(x), up(x)))


def _attention(module: nn.Module, kernels: Kernels) -> Callable[..., Any] | None:
    """The module's own forward with another rotary embedding: its code over a copy of the names that it looks up."""
    forward = type(module).forward
    if not isinstance(forward, FunctionType) or inspect.unwrap(forward) is not forward or forward.__closure__:
        return None
    rotary = forward.__globals__.get(_ROTARY)
    if _ROTARY not in forward.__code__.co_names or not callable(rotary) or not _rotates_halves(rotary):
        return None
    names = {**forward.__globals__, _ROTARY: kernels.rope}
    copy = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__)
    copy.__kwdefaults__ = forward.__kwdefaults__
    return MethodType(copy, module)


def _rotates_halves(rotary: Callable[..., Any]) -> bool:
    """Whether it turns (q, k) by (cos, sin) as Llama does."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, n, 5, 8, generator=generator) for n in (4, 2))
    angles = torch.randn(1, 5, 4, generator=generator).repeat(1, 1, 2)
    cos, sin = angles.cos(), angles.sin()

    def turned(x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return x * cos[:, None] + torch.cat([-b, a], -1) * sin[:, None]

    try:
        found = rotary(q, k, cos, sin)
    except (TypeError, ValueError, RuntimeError):
        return False
    return torch.equal(found[0], turned(q)) and torch.equal(found[1], turned(k))


@torch.no_grad()
def _computed(module: nn.Module, x: Tensor) -> Tensor | None:
    """What the module makes of x; None where it does not take one tensor or give one."""
    try:
        found = module(x)
    except (TypeError, ValueError, RuntimeError):
        return None
    return found if isinstance(found, Tensor) else None


def _sample(width: int, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(width)
    return torch.randn(1, 3, width, generator=generator).to(like)
