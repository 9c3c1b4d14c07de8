"""Gradients of the fused head against float64 autograd over the whole logits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from grpo_numerics import HeadSpec, entropy, fused_logprobs, token_logprobs
from torch import Tensor

TINY_TILE = (32, 48)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def inputs(rows: int, dim: int, vocab: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    make = [torch.randn(shape, generator=generator).to(dtype) for shape in ((rows, dim), (vocab, dim), (vocab,))]
    return *(x.requires_grad_() for x in make), torch.randint(vocab, (rows,), generator=generator)


def by_autograd(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    temperature: Tensor,
    cap: float | None,
    normalizer: Any,
) -> tuple[Tensor, Tensor]:
    z = (hidden @ weight.T + bias) * 0.7
    z = z if cap is None else cap * torch.tanh(z / cap)
    options = {"temperature": temperature, "normalizer": normalizer}
    return token_logprobs(z, targets, **options), entropy(z, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "dim", "vocab"), [(1, 5, 7), (3, 17, 33), (70, 33, 1021)])
@pytest.mark.parametrize("cap", [None, 4.0])
@pytest.mark.parametrize("normalizer", ["softmax", "stablemax"])
def test_gradients_match_float64(
    dtype: torch.dtype, rows: int, dim: int, vocab: int, cap: float | None, normalizer: Any
) -> None:
    *tensors, targets = inputs(rows, dim, vocab, dtype)
    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(2, rows, generator=generator, dtype=torch.float64)
    temperature = torch.linspace(0.5, 1.7, rows)
    working = torch.float64 if dtype is torch.float64 else torch.float32

    def gradients_of(figures: tuple[Tensor, Tensor], of: list[Tensor]) -> tuple[Tensor, ...]:
        loss = sum((u * f.double()).sum() for u, f in zip(upstream, figures, strict=True))
        assert isinstance(loss, Tensor)
        return torch.autograd.grad(loss, of)

    def through_autograd(kind: torch.dtype) -> tuple[Tensor, ...]:
        copies = [x.detach().to(kind).requires_grad_() for x in tensors]
        return gradients_of(by_autograd(*copies, targets, temperature, cap, normalizer), copies)

    exact, naive = through_autograd(torch.float64), through_autograd(working)
    hidden, weight, bias = tensors
    fused = fused_logprobs(
        hidden,
        weight,
        targets,
        spec=HeadSpec(bias, 0.7, cap),
        temperature=temperature,
        normalizer=normalizer,
        return_entropy=True,
        tile=TINY_TILE,
    )
    for found, truth, plain in zip(gradients_of(fused, tensors), exact, naive, strict=True):
        assert found.dtype == dtype
        # Twice plain torch's error in the working precision, and one rounding to the input's dtype at the end. Where
        # plain torch happens to be exact, 16 roundings: log-prob, log-sum-exp, exp, slope, sum and product.
        size = truth.norm()
        slack = 2 * (plain.double() - truth).norm() + (16 * torch.finfo(working).eps + torch.finfo(dtype).eps) * size
        assert (found.double() - truth).norm() <= slack


@pytest.mark.parametrize("normalizer", ["softmax", "stablemax"])
@pytest.mark.parametrize("return_entropy", [False, True])
def test_gradcheck(normalizer: Any, return_entropy: bool) -> None:
    hidden, weight, bias, targets = inputs(3, 4, 9, torch.float64)
    torch.autograd.gradcheck(
        lambda h, w, b: fused_logprobs(
            h,
            w,
            targets,
            spec=HeadSpec(b, 0.7, 4.0),
            temperature=1.3,
            normalizer=normalizer,
            return_entropy=return_entropy,
            tile=(16, 16),
        ),
        (hidden, weight, bias),
    )


def test_values_are_those_of_scoring() -> None:
    hidden, weight, bias, targets = inputs(20, 8, 50, torch.float32)
    plain = token_logprobs(hidden @ weight.T + bias, targets)
    torch.testing.assert_close(fused_logprobs(hidden, weight, targets, spec=HeadSpec(bias)), plain)


def test_only_what_is_needed_gets_a_gradient() -> None:
    hidden, weight, bias, targets = inputs(5, 8, 50, torch.float32)
    fused_logprobs(hidden, weight.detach(), targets, spec=HeadSpec(bias.detach())).sum().backward()
    assert hidden.grad is not None
    fused_logprobs(hidden.detach(), weight, targets).sum().backward()
    assert weight.grad is not None
    assert bias.grad is None


def test_masked_rows_reach_no_gradient() -> None:
    hidden, weight, _, targets = inputs(6, 8, 50, torch.float32)
    mask = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    kept = mask.bool()
    fused_logprobs(hidden[kept], weight, targets[kept]).sum().backward()
    clean, weight.grad = weight.grad, None
    poisoned = hidden.detach().clone()
    poisoned[~kept] = math.nan
    poisoned.requires_grad_()
    scores = fused_logprobs(poisoned, weight, targets)
    assert scores.isnan().tolist() == (~kept).tolist()
    torch.where(kept, scores, 0.0).sum().backward()
    assert clean is not None
    assert weight.grad is not None
    assert torch.equal(weight.grad, clean)
    assert poisoned.grad is not None
    assert poisoned.grad[~kept].eq(0).all()


def test_no_row_is_kept() -> None:
    hidden, weight, bias, targets = inputs(6, 8, 50, torch.bfloat16)
    (fused_logprobs(hidden, weight, targets, spec=HeadSpec(bias)) * 0).sum().backward()
    for tensor in (hidden, weight, bias):
        assert tensor.grad is not None
        assert tensor.grad.eq(0).all()


@pytest.mark.parametrize("lead", [17.0, 40.0, 80.0])
def test_the_gradient_of_a_sure_token_lives(lead: float) -> None:
    weight = torch.tensor([[0.0], [lead], [0.0]])
    bias = torch.zeros(3, requires_grad=True)
    fused_logprobs(torch.ones(1, 1), weight, torch.tensor([1]), spec=HeadSpec(bias)).sum().backward()
    rest = math.exp(-lead)
    expected = torch.tensor([-rest, 2 * rest, -rest], dtype=torch.float64) / (1 + 2 * rest)
    assert bias.grad is not None
    relative = 4 * lead * torch.finfo(torch.float32).eps
    torch.testing.assert_close(bias.grad.double(), expected, rtol=relative, atol=0)
