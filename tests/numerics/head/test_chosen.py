"""Chosen log-probs and their tail, values and gradients, against float64 over the whole vocabulary."""

from __future__ import annotations

import math

import pytest
import torch
from grpo_numerics.head.chosen import fused_chosen_logprobs
from grpo_numerics.head.spec import HeadSpec
from torch import Tensor

R, D, V = 37, 24, 301


def inputs(dtype: torch.dtype, scale: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    hidden = (torch.randn(R, D, generator=g) * scale).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=g).to(dtype).requires_grad_()
    ids = torch.stack([torch.randperm(V, generator=g)[:6] for _ in range(R)])
    ids[3, 2:] = -1
    ids[4] = ids[4, 0]  # one id six times
    ids[5, :2] = -1
    ids[6] = torch.tensor([7, 9, 7, -1, 9, 11])
    return hidden, weight, ids


def oracle(
    hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float, spec: HeadSpec, symlog: bool
) -> tuple[Tensor, Tensor]:
    z = hidden.double() @ weight.double().t()
    if spec.bias is not None:
        z = z + spec.bias.double()
    z = z * spec.logit_scale
    if spec.softcap is not None:
        z = torch.tanh(z / spec.softcap) * spec.softcap
    z = z / temperature
    if symlog:
        z = torch.sign(z) * torch.log1p(z.abs())
    logp = z.log_softmax(-1)
    chosen = torch.zeros_like(logp, dtype=torch.bool)
    rows = torch.arange(len(ids))[:, None].expand_as(ids)
    chosen[rows[ids >= 0], ids[ids >= 0]] = True
    tail = logp.masked_fill(chosen, -math.inf).logsumexp(-1)
    return logp.gather(1, ids.clamp(min=0)).masked_fill(ids < 0, -math.inf), tail


SPECS = {
    "plain": (HeadSpec(), 1.0, False),
    "temperature": (HeadSpec(), 0.7, False),
    "bias, scale, soft-cap": (HeadSpec(logit_scale=0.5, softcap=9.0), 1.3, False),
    "stablemax": (HeadSpec(), 1.0, True),
}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_values_and_gradients(name: str, dtype: torch.dtype) -> None:
    spec, temperature, symlog = SPECS[name]
    hidden, weight, ids = inputs(dtype)
    bias = None
    if "bias" in name:
        bias = torch.randn(V, generator=torch.Generator().manual_seed(5)).requires_grad_()
        spec = HeadSpec(bias, spec.logit_scale, spec.softcap)
    got = fused_chosen_logprobs(
        hidden,
        weight,
        ids,
        spec=spec,
        temperature=temperature,
        normalizer="stablemax" if symlog else "softmax",
        tile=(16, 64),
    )
    want = oracle(hidden, weight, ids, temperature, spec, symlog)
    there = ids >= 0
    g = torch.Generator().manual_seed(1)
    of_logprobs = torch.randn(R, ids.shape[1], generator=g, dtype=torch.float64) * there
    of_tail = torch.randn(R, generator=g, dtype=torch.float64)
    inputs_ = [hidden, weight] + ([bias] if bias is not None else [])
    mine = torch.autograd.grad(
        [got.logprobs[there], got.tail], inputs_, [of_logprobs[there].to(got.tail.dtype), of_tail.to(got.tail.dtype)]
    )
    theirs = torch.autograd.grad([want[0][there], want[1]], inputs_, [of_logprobs[there], of_tail])
    # fp32 logits of size |h| |w| D carry D eps of error each; the gradient is linear in what it is given.
    eps = 1e-12 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(got.logprobs[there].double(), want[0][there].detach(), rtol=eps, atol=eps)
    torch.testing.assert_close(got.tail.double(), want[1].detach(), rtol=eps, atol=eps)
    rounding = {torch.float32: 0.0, torch.float64: 0.0, torch.bfloat16: 2.0**-8}[dtype]
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(
            a.double(), b.double(), rtol=rounding + eps, atol=(rounding + 10 * eps) * float(b.abs().max())
        )
    assert torch.all(got.logprobs[~there] == -math.inf)


def test_a_tail_that_is_tiny_keeps_its_precision_and_its_gradient() -> None:
    hidden, weight, _ = inputs(torch.float32, scale=12.0)
    best = (hidden @ weight.t()).topk(6).indices.detach()
    got = fused_chosen_logprobs(hidden, weight, best)
    want = oracle(hidden, weight, best, 1.0, HeadSpec(), symlog=False)
    assert want[1].min() < math.log(1e-12)
    # The logits are some 200 large; their fp32 error is the tail's.
    torch.testing.assert_close(got.tail.double(), want[1].detach(), rtol=0, atol=1e-3)
    (mine,) = torch.autograd.grad(got.tail.sum(), hidden)
    (theirs,) = torch.autograd.grad(want[1].sum(), hidden)
    torch.testing.assert_close(mine.double(), theirs.double(), rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


def test_the_whole_vocabulary_leaves_no_tail() -> None:
    hidden, weight, _ = inputs(torch.float64)
    ids = torch.arange(V).expand(R, V)
    got = fused_chosen_logprobs(hidden, weight, ids)
    assert torch.all(got.tail == -math.inf)
    (mine,) = torch.autograd.grad(
        (got.logprobs.exp() * got.logprobs).sum() + got.tail.nan_to_num(neginf=0.0).sum(), hidden
    )
    (theirs,) = torch.autograd.grad((lambda p: (p.exp() * p).sum())((hidden @ weight.t()).log_softmax(-1)), hidden)
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_a_masked_row_reaches_no_gradient() -> None:
    hidden, weight, ids = inputs(torch.float32)
    with torch.no_grad():
        hidden[2] = math.nan
    got = fused_chosen_logprobs(hidden, weight, ids)
    keep = torch.ones(R, dtype=torch.bool)
    keep[2] = False
    (mine,) = torch.autograd.grad(torch.where(keep, got.tail, 0.0).sum(), hidden)
    assert mine.isfinite().all()
    assert (mine[2] == 0).all()


def test_ids_must_be_a_table() -> None:
    hidden, weight, ids = inputs(torch.float32)
    with pytest.raises(ValueError, match="token_ids must be"):
        fused_chosen_logprobs(hidden, weight, ids[:, 0])
