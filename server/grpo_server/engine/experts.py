"""Experts whose rows keep their bits: how many rows an expert is given depends on the text of the whole batch, and with it,
in a model's own forward, the kernel that multiplies them.

transformers lays the experts of most mixtures out alike (`use_experts_implementation`). Those are computed here by
`grpo_numerics.products.grouped_linear`, if on random rows that gives the module's own numbers, and each row the same bits in
any company.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from grpo_numerics.products import expert_rows, grouped_linear, runs_grouped
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

log = logging.getLogger(__name__)

_MARKS = ("num_experts", "has_gate", "has_bias", "is_transposed", "has_post_expert_norm", "_apply_gate")
# Rows of the trial, and in how small a company some of them are computed again.
_MOST, _FEWER = 96, (1, 2, 3, 5, 8, 17, 33, 64)
_CHOSEN = 2  # experts of a row


def settle_experts(modules: Sequence[nn.Module], *, trusted: bool) -> tuple[set[nn.Module], str | None]:
    """Make experts keep the bits of their rows. trusted: MKL keeps them at any whole number of blocks.

    Returns those that do now, and of the first that does not, what stands in the way.
    """
    kinds: dict[object, list[Any]] = {}
    for module in modules:
        if _is_known(module):
            kinds.setdefault((type(module), _shapes(module)), []).append(module)
    settled: set[nn.Module] = set()
    for alike in kinds.values():
        if (problem := _problem(alike[0], trusted)) is not None:
            return settled, problem
        for module in alike:
            module.forward = functools.partial(fixed_experts, module, trusted)
            settled.add(module)
    if settled:
        log.info("experts are computed in whole blocks of rows, so that their scores do not depend on the batch")
    return settled, None


def _is_known(module: Any) -> bool:
    if not all(hasattr(module, mark) for mark in _MARKS) or getattr(module, "_is_expert_parallel", False):
        return False
    weights = [p for name, p in module.named_parameters(recurse=False) if name.endswith("_proj")]
    return (
        len(weights) == 2
        and "down_proj" in dict(module.named_parameters(recurse=False))
        and not any(isinstance(p, DTensor) for p in weights)
        and all(p.dim() == 3 and p.is_floating_point() and runs_grouped(p) for p in weights)
    )


def _shapes(module: nn.Module) -> tuple[object, ...]:
    return tuple((name, p.shape, p.dtype, p.device) for name, p in module.named_parameters(recurse=False))


def fixed_experts(
    module: Any, whole: bool, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """(T, D) hidden states through the experts (T, k) of each with weights (T, k): what `module.forward` computes, summed in
    float32 in the order in which they were chosen."""
    up = "gate_up_proj" if module.has_gate else "up_proj"
    first, second = getattr(module, up), module.down_proj
    first_bias, second_bias = (
        getattr(module, f"{name}_bias") if module.has_bias else None for name in (up, "down_proj")
    )
    chosen = top_k_index.shape[1]
    inner = second.shape[1 if module.is_transposed else 2]
    rows = expert_rows(top_k_index.reshape(-1), second, (inner, 2 * inner, hidden_states.shape[1]))
    x = rows.spread(hidden_states.repeat_interleave(chosen, 0))
    x = grouped_linear(x, first, first_bias, rows, transposed=module.is_transposed, whole=whole)
    x = module._apply_gate(x) if module.has_gate else module.act_fn(x)
    x = grouped_linear(x, second, second_bias, rows, transposed=module.is_transposed, whole=whole)
    if module.has_post_expert_norm:
        x = module.post_expert_norm(x)
    each = x[rows.places].view(-1, chosen, x.shape[1])
    total = each[:, 0].float() * top_k_weights[:, :1]
    for n in range(1, chosen):
        total = total + each[:, n].float() * top_k_weights[:, n : n + 1]
    return total.to(hidden_states.dtype)


@torch.inference_mode()
def _problem(module: Any, trusted: bool) -> str | None:
    """Why `fixed_experts` cannot stand in for the module's own forward; None: it can."""
    weight = module.down_proj
    hidden, name = weight.shape[2 if module.is_transposed else 1], type(module).__name__
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_MOST, hidden, generator=generator).to(weight)
    scores = torch.rand(_MOST, module.num_experts, generator=generator)
    parts, index = scores.topk(min(_CHOSEN, module.num_experts))
    index, parts = index.to(weight.device), (parts / parts.sum(1, keepdim=True)).to(weight)
    ours, theirs = fixed_experts(module, trusted, x, index, parts), module.forward(x, index, parts)
    eps = torch.finfo(weight.dtype).eps
    allowed = 4 * eps * max(1.0, math.sqrt(hidden) * 2.0**-23 / eps)
    away = torch.linalg.vector_norm(ours.double() - theirs.double())
    if not bool(away <= allowed * torch.linalg.vector_norm(theirs.double())):
        return f"experts in whole blocks do not give the numbers of {name}"
    for rows in _FEWER:
        start = int(torch.randint(_MOST - rows + 1, (), generator=generator))
        span = slice(start, start + rows)
        if not torch.equal(fixed_experts(module, trusted, x[span], index[span], parts[span]), ours[span]):
            return f"experts of {name} change the bits of a row among {rows}"
    return None
