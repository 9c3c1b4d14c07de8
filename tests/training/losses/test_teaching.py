"""The teacher's term of a portion: a float64 oracle over the whole vocabulary, shares that add up, holes that reach nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from grpo_numerics.head.chosen import chosen_logprobs, fused_chosen_logprobs
from grpo_training.config import DistillConfig
from grpo_training.losses.distillation import Support
from grpo_training.losses.grpo import Totals
from grpo_training.losses.teaching import difference_sums, divergence_loss
from torch import Tensor

N, D, V = 23, 12, 61


def setting() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(2)
    hidden = torch.randn(N, D, generator=g, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(V, D, generator=g, dtype=torch.float64)
    return hidden, weight, (2 * torch.randn(N, V, generator=g, dtype=torch.float64)).log_softmax(-1)


def options(**fields: Any) -> DistillConfig:
    return DistillConfig.model_validate({"teachers": "http://a:1", **fields})


def whole(teacher: Tensor) -> Support:
    """Told of every id, in an order of its own in each row."""
    ids = torch.stack([torch.randperm(V, generator=torch.Generator().manual_seed(n)) for n in range(N)])
    return Support(ids, teacher.gather(1, ids), torch.full((N,), -torch.inf, dtype=teacher.dtype))


def book(p: Tensor, q: Tensor, kind: str, beta: float, alpha: float) -> Tensor:
    def kl(a: Tensor, b: Tensor) -> Tensor:
        return (a.exp() * (a - b)).sum(-1)

    def mix(share: float) -> Tensor:
        return (share * p.exp() + (1 - share) * q.exp()).log()

    return {
        "forward": lambda: kl(p, q),
        "reverse": lambda: kl(q, p),
        "jsd": lambda: beta * kl(p, mix(beta)) + (1 - beta) * kl(q, mix(beta)),
        "skew_forward": lambda: kl(p, mix(alpha)),
        "skew_reverse": lambda: kl(q, mix(1 - alpha)),
    }[kind]()


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd", "skew_forward", "skew_reverse"])
@pytest.mark.parametrize("tail", ["bucket", "none", "renormalise"])
def test_at_the_whole_vocabulary_value_and_gradient_are_those_of_the_book(kind: str, tail: str) -> None:
    hidden, weight, teacher = setting()
    trained = torch.arange(N) % 3 > 0
    told = whole(teacher)
    chosen = fused_chosen_logprobs(hidden, weight, told.ids)
    fields = {"kind": kind, "tail": tail, "coef": 0.7}
    term = divergence_loss(chosen, told, trained, options(**fields), Totals(4, 31, 1, 8))
    mine = term.loss
    theirs = 0.7 * book(teacher, (hidden @ weight.t()).log_softmax(-1), kind, 0.5, 0.1)[trained].sum() / 31
    torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=1e-9)
    [a], [b] = (torch.autograd.grad(loss, hidden, retain_graph=True) for loss in (mine, theirs))
    torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-7)
    assert float(term.sums["distill/loss"]) == pytest.approx(float(mine.detach()) * 31 / 0.7)
    assert float(term.sums["distill/teacher_mass"]) == pytest.approx(float(trained.sum()))
    assert float(term.sums["distill/tail"]) == 0


def test_portions_add_up_to_the_mean_over_all_tokens() -> None:
    hidden, weight, teacher = setting()
    ids = teacher.topk(5).indices
    told = Support(ids, teacher.gather(1, ids), teacher.scatter(1, ids, -torch.inf).logsumexp(-1))
    trained = torch.ones(N, dtype=torch.bool)

    def loss(rows: slice) -> Tensor:
        chosen = fused_chosen_logprobs(hidden[rows], weight, ids[rows])
        part = Support(*(figure[rows] for figure in told))
        return divergence_loss(chosen, part, trained[rows], options(kind="forward"), Totals(4, N, 3, 8)).loss

    parts = loss(slice(0, 3)) + loss(slice(3, 4)) + loss(slice(4, N))
    torch.testing.assert_close(parts, loss(slice(0, N)))


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd", "skew_forward", "skew_reverse"])
@pytest.mark.parametrize("tail", ["bucket", "none", "renormalise"])
@pytest.mark.parametrize("hole", [torch.nan, -torch.inf, torch.inf])
def test_what_is_not_trained_on_may_be_anything(kind: str, tail: str, hole: float) -> None:
    hidden, weight, teacher = setting()
    ids = teacher.topk(5).indices
    trained = torch.arange(N) != 7
    told = Support(ids, teacher.gather(1, ids), teacher.scatter(1, ids, -torch.inf).logsumexp(-1))

    def gradient(of: Support, rows: Tensor) -> tuple[Tensor, Tensor]:
        chosen = fused_chosen_logprobs(rows, weight, of.ids)
        loss = divergence_loss(chosen, of, trained, options(kind=kind, tail=tail), Totals(4, N - 1, 1, 8)).loss
        return loss, torch.autograd.grad(loss, rows)[0]

    expected = gradient(told, hidden)
    logprobs, outside = told.logprobs.clone(), told.tail.clone()
    logprobs[7], outside[7] = hole, hole
    broken = hidden.detach().clone()
    broken[7] = torch.nan
    for loss, grad in (
        gradient(Support(ids, logprobs, outside), hidden),
        gradient(told, broken.requires_grad_()),
    ):
        torch.testing.assert_close(loss, expected[0])
        torch.testing.assert_close(grad, expected[1])


@pytest.mark.parametrize("normalizer", ["softmax", "stablemax"])
def test_logits_that_are_there_give_what_the_tiles_give(normalizer: Any) -> None:
    hidden, weight, _ = setting()
    ids = torch.randint(-1, V, (N, 6), generator=torch.Generator().manual_seed(0))
    ids[3] = -1
    under = {"temperature": 0.7, "normalizer": normalizer}
    fused = fused_chosen_logprobs(hidden, weight, ids, **under)
    plain = chosen_logprobs(hidden @ weight.t(), ids, **under)
    for a, b in zip(plain, fused, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-8)
    weights = torch.rand(N, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    [a], [b] = (
        torch.autograd.grad((x.logprobs.where(ids >= 0, 0.0) * weights).sum() + x.tail.sum(), hidden, retain_graph=True)
        for x in (plain, fused)
    )
    torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-7)


def test_every_id_chosen_leaves_no_tail_and_no_gradient_of_it() -> None:
    logits = torch.randn(2, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    chosen = chosen_logprobs(logits, torch.tensor([[0, 1, 2, 3], [0, 1, 1, -1]]))
    assert chosen.tail[0] == -torch.inf
    [gradient] = torch.autograd.grad(chosen.tail.where(chosen.tail > -torch.inf, 0.0).sum(), logits)
    assert gradient.isfinite().all()
    assert (gradient[0] == 0).all()


def test_differences_are_counted_in_the_mask_alone() -> None:
    old = torch.tensor([[-1.0, -2.0, torch.nan], [-3.0, 0.0, 0.0]])
    teacher = torch.tensor([[-4.0, -2.5, 0.0], [-1.0, torch.nan, 0.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    sums = difference_sums(old, teacher, mask, clip=1.0)
    assert float(sums["distill/d_mean"]) == pytest.approx(3.0 + 0.5 - 2.0)
    assert int(sums["distill/clipped"]) == 2
    assert "distill/clipped" not in difference_sums(old, teacher, mask, clip=None)
