"""Every divergence against float64 over the full vocabulary, in value and gradient; what is masked reaches nothing."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from grpo_numerics.head.chosen import ChosenLogprobs, fused_chosen_logprobs
from grpo_training.losses.distillation import (
    DistillKind,
    Support,
    distillation_terms,
    first_places,
    sampled_advantages,
)
from torch import Tensor

N, D, V, K = 29, 16, 97, 8
KINDS: tuple[DistillKind, ...] = get_args(DistillKind)


def setting(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """hidden and weight of the student, and the teacher's full log-probs."""
    g = torch.Generator().manual_seed(3)
    hidden = torch.randn(N, D, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    teacher = (2 * torch.randn(N, V, generator=g, dtype=torch.float64)).log_softmax(-1)
    return hidden, weight, teacher


def told(teacher: Tensor, ids: Tensor) -> Support:
    chosen = torch.zeros_like(teacher, dtype=torch.bool)
    rows = torch.arange(len(ids))[:, None].expand_as(ids)
    chosen[rows[ids >= 0], ids[ids >= 0]] = True
    return Support(ids, teacher.gather(1, ids.clamp(min=0)), teacher.masked_fill(chosen, -math.inf).logsumexp(-1))


def plain(p: Tensor, q: Tensor, kind: str, beta: float, alpha: float) -> Tensor:
    """Over (N, outcomes) log-probs, by the book."""

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return (a.exp() * (a - b)).sum(-1)

    def mix(share: float) -> Tensor:
        return (share * p.exp() + (1 - share) * q.exp()).log()

    if kind == "forward" or (kind == "jsd" and beta == 0):
        return kl(p, q)
    if kind == "reverse" or (kind == "jsd" and beta == 1):
        return kl(q, p)
    if kind == "jsd":
        return beta * kl(p, mix(beta)) + (1 - beta) * kl(q, mix(beta))
    return kl(p, mix(alpha)) if kind == "skew_forward" else kl(q, mix(1 - alpha))


def bucketed(full: Tensor, ids: Tensor, tail: str) -> Tensor:
    chosen = torch.zeros_like(full, dtype=torch.bool).scatter(1, ids, torch.ones_like(ids, dtype=torch.bool))
    inside = full.gather(1, ids)
    if tail == "renormalise":
        return inside - inside.logsumexp(-1, keepdim=True)
    if tail == "none":
        return inside
    return torch.cat([inside, full.masked_fill(chosen, -math.inf).logsumexp(-1, keepdim=True)], 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tail", ["bucket", "none", "renormalise"])
@pytest.mark.parametrize("beta", [0.0, 0.01, 0.5, 1.0])
def test_value_and_gradient(kind: DistillKind, tail: Any, beta: float) -> None:
    hidden, weight, teacher = setting()
    ids = teacher.topk(K).indices
    student = fused_chosen_logprobs(hidden, weight, ids)
    terms = distillation_terms(student, told(teacher, ids), kind, tail=tail, beta=beta)
    q = (hidden @ weight.t()).log_softmax(-1)
    want = plain(bucketed(teacher, ids, tail), bucketed(q, ids, tail), kind, beta, 0.1)
    torch.testing.assert_close(terms.divergence, want, rtol=1e-10, atol=1e-12)
    mine = torch.autograd.grad(terms.divergence.sum(), (hidden, weight))
    theirs = torch.autograd.grad(want.sum(), (hidden, weight))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(terms.teacher_mass, teacher.gather(1, ids).exp().sum(-1))
    torch.testing.assert_close(terms.student_mass, q.detach().gather(1, ids).exp().sum(-1))


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_whole_vocabulary_it_is_the_full_divergence(kind: DistillKind) -> None:
    hidden, weight, teacher = setting()
    ids = torch.argsort(torch.rand(N, V, generator=torch.Generator().manual_seed(0)), 1)
    terms = distillation_terms(fused_chosen_logprobs(hidden, weight, ids), told(teacher, ids), kind, beta=0.3)
    want = plain(teacher, (hidden @ weight.t()).log_softmax(-1), kind, 0.3, 0.1)
    torch.testing.assert_close(terms.divergence, want, rtol=1e-10, atol=1e-12)
    (mine,) = torch.autograd.grad(terms.divergence.sum(), hidden)
    (theirs,) = torch.autograd.grad(want.sum(), hidden)
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tail", ["bucket", "renormalise"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(kind: DistillKind, tail: Any) -> None:
    hidden, weight, _ = setting(torch.float32)
    full = (hidden @ weight.t()).log_softmax(-1).detach()
    ids = full.topk(K).indices
    student = fused_chosen_logprobs(hidden, weight, ids)
    teacher = Support(ids, student.logprobs.detach(), student.tail.detach())
    terms = distillation_terms(student, teacher, kind, tail=tail)
    (gradient,) = torch.autograd.grad(terms.divergence.sum(), hidden)
    assert terms.divergence.abs().max() < 1e-6
    assert gradient.abs().max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tail", ["bucket", "none", "renormalise"])
@pytest.mark.parametrize("hole", [math.nan, -math.inf, math.inf])
def test_what_is_masked_reaches_nothing(kind: DistillKind, tail: Any, hole: float) -> None:
    hidden, weight, teacher = setting()
    ids = teacher.topk(K).indices
    short = ids.clone()
    short[:, 5:] = -1
    support = told(teacher, short)
    support.logprobs[:, 5:] = hole
    student = fused_chosen_logprobs(hidden, weight, short)
    terms = distillation_terms(student, support, kind, tail=tail)
    want = plain(
        bucketed(teacher, ids[:, :5], tail),
        bucketed((hidden @ weight.t()).log_softmax(-1), ids[:, :5], tail),
        kind,
        0.5,
        0.1,
    )
    torch.testing.assert_close(terms.divergence, want, rtol=1e-10, atol=1e-12)
    for mine, theirs in zip(
        torch.autograd.grad(terms.divergence.sum(), (hidden, weight)),
        torch.autograd.grad(want.sum(), (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


def test_an_id_that_stands_twice_counts_once() -> None:
    hidden, weight, teacher = setting()
    ids = teacher.topk(4).indices
    twice = torch.cat([ids, ids[:, :2]], 1)
    once = distillation_terms(fused_chosen_logprobs(hidden, weight, ids), told(teacher, ids))
    again = distillation_terms(fused_chosen_logprobs(hidden, weight, twice), told(teacher, twice))
    torch.testing.assert_close(again.divergence, once.divergence)
    torch.testing.assert_close(again.student_mass, once.student_mass)
    assert first_places(torch.tensor([[3, 3, -1, 5, 3, -1]])).tolist() == [[True, False, False, True, False, False]]


def test_a_row_of_which_nothing_is_known_adds_nothing() -> None:
    hidden, weight, teacher = setting()
    ids = teacher.topk(K).indices
    ids[0] = -1
    for tail in ("none", "renormalise"):
        terms = distillation_terms(fused_chosen_logprobs(hidden, weight, ids), told(teacher, ids), tail=tail)
        assert terms.divergence[0] == 0
        (gradient,) = torch.autograd.grad(terms.divergence.sum(), hidden)
        assert gradient.isfinite().all()
        assert (gradient[0] == 0).all()


def test_the_sampled_reverse_kl_is_an_advantage_a_token() -> None:
    old, teacher = torch.tensor([[-1.0, -2.0, -9.0]]), torch.tensor([[-1.5, -0.5, math.nan]])
    mask = torch.tensor([[True, True, False]])
    assert sampled_advantages(old, teacher, mask, coef=2.0).tolist() == [[-1.0, 3.0, 0.0]]
    assert sampled_advantages(old, teacher, mask, clip=1.0).tolist() == [[-0.5, 1.0, 0.0]]
    with pytest.raises(ValueError, match="clip"):
        sampled_advantages(old, teacher, mask, clip=0.0)


def test_its_expected_gradient_is_that_of_the_reverse_kl() -> None:
    """The policy gradient of -(log p - log q), summed over the vocabulary by its own probabilities."""
    _, _, teacher = setting()
    logits = torch.randn(N, V, generator=torch.Generator().manual_seed(8), dtype=torch.float64, requires_grad=True)
    q = logits.log_softmax(-1)
    everything = torch.ones_like(q, dtype=torch.bool)
    advantages = sampled_advantages(q.detach(), teacher, everything)
    (mine,) = torch.autograd.grad(-(q.detach().exp() * advantages * q).sum(), logits, retain_graph=True)
    (theirs,) = torch.autograd.grad((q.exp() * (q - teacher)).sum(), logits)
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kind": "backward"}, "kind must be one of"),
        ({"tail": "all"}, "tail must be one of"),
        ({"beta": 1.5}, "beta must lie"),
        ({"alpha": 1.0}, "alpha must lie"),
    ],
)
def test_what_cannot_be(change: dict[str, Any], says: str) -> None:
    ids = torch.zeros(2, 3, dtype=torch.int64)
    student, teacher = (
        ChosenLogprobs(torch.zeros(2, 3), torch.zeros(2)),
        Support(ids, torch.zeros(2, 3), torch.zeros(2)),
    )
    with pytest.raises(ValueError, match=says):
        distillation_terms(student, teacher, **change)
    with pytest.raises(ValueError, match="same"):
        distillation_terms(student, Support(ids[:, :2], torch.zeros(2, 3), torch.zeros(2)))
