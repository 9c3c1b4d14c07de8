"""The ids on which teacher and student are compared, from the arrays of an answer, against whole distributions in float64."""

from __future__ import annotations

import pytest
import torch
from grpo_training.rollouts.support import among, tokens_of
from torch import Tensor

N, V, K = 17, 40, 6


def answer(full: Tensor, asked: Tensor, *, top_k: int = K, tail: bool = True) -> dict[str, Tensor]:
    best = full.topk(top_k)
    told = {
        "logprobs": full[:, 0].float(),
        "top_ids": best.indices.int(),
        "top_logprobs": best.values.float(),
        "token_logprobs": full.gather(1, asked.clamp(min=0)).masked_fill(asked < 0, -torch.inf).float(),
    }
    if tail:
        told |= {"top_tail": outside(full, best.indices).float(), "token_tail": outside(full, asked).float()}
    return told


def outside(full: Tensor, ids: Tensor) -> Tensor:
    inside = torch.zeros_like(full, dtype=torch.bool)
    rows = torch.arange(len(ids))[:, None].expand_as(ids)
    inside[rows[ids >= 0], ids[ids >= 0]] = True
    return full.masked_fill(inside, -torch.inf).logsumexp(-1)


@pytest.fixture
def full() -> Tensor:
    return (2 * torch.randn(N, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).log_softmax(-1)


@pytest.fixture
def student() -> Tensor:
    return torch.randn(N, V, generator=torch.Generator().manual_seed(1)).topk(K).indices


@pytest.mark.parametrize("support", ["teacher", "student", "union"])
def test_ids_their_log_probs_and_the_mass_outside(full: Tensor, student: Tensor, support: str) -> None:
    told = answer(full, student)
    tokens = tokens_of(support, told, student, V)  # pyright: ignore[reportArgumentType]
    sets = {"teacher": [told["top_ids"].long()], "student": [student], "union": [told["top_ids"].long(), student]}[
        support
    ]
    wanted = torch.cat(sets, 1)
    for row, ids in enumerate(tokens.ids.tolist()):
        real = [i for i in ids if i >= 0]
        assert len(real) == len(set(real))
        assert set(real) == set(wanted[row].tolist())
    there = tokens.ids >= 0
    exact = full.gather(1, tokens.ids.clamp(min=0))
    torch.testing.assert_close(tokens.logprobs[there].double(), exact[there], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(tokens.tail.double(), outside(full, tokens.ids), atol=1e-4, rtol=1e-4)
    assert tokens.overlap is not None
    both = [len(set(a) & set(b)) / K for a, b in zip(told["top_ids"].tolist(), student.tolist(), strict=True)]
    torch.testing.assert_close(tokens.overlap.double(), torch.tensor(both, dtype=torch.float64), atol=1e-6, rtol=0)


def test_a_tail_that_a_difference_cannot_resolve_leaves_the_teachers_ids_alone(full: Tensor) -> None:
    sharp = full.clone()
    sharp[:, 20:] -= 40  # all but nothing outside 0..19, and the student has the teacher's next best
    sharp = sharp.log_softmax(-1)
    order = sharp.argsort(dim=1, descending=True)
    student = order[:, K:20]
    tokens = tokens_of("union", answer(sharp, student), student, V)
    assert (tokens.ids[:, K:] == -1).all()
    torch.testing.assert_close(tokens.tail.double(), outside(sharp, order[:, :K]), atol=1e-5, rtol=1e-5)


def test_a_union_of_everything_leaves_nothing_outside(full: Tensor) -> None:
    order = full.argsort(dim=1, descending=True)
    tokens = tokens_of("union", answer(full, order[:, K:]), order[:, K:], V)
    assert (tokens.tail == -torch.inf).all()
    assert (tokens.ids >= 0).all()


def test_ids_that_the_student_has_not_are_mass_outside(full: Tensor, student: Tensor) -> None:
    vocab = 25
    tokens = tokens_of("teacher", answer(full, student), student, vocab)
    assert (tokens.ids < vocab).all()
    assert (tokens.ids == -1).any()
    torch.testing.assert_close(tokens.tail.double(), outside(full, tokens.ids), atol=1e-5, rtol=1e-5)


def test_the_sampled_token_alone(full: Tensor) -> None:
    sampled = torch.arange(N)[:, None] % V
    tokens = tokens_of("sampled", {**answer(full, sampled)}, sampled, V)
    assert torch.equal(tokens.ids, sampled)
    assert tokens.overlap is None
    torch.testing.assert_close(tokens.tail.double(), outside(full, sampled), atol=1e-5, rtol=1e-5)


def test_no_overlap_is_told_of_ids_that_the_sampler_does_not_tell(full: Tensor, student: Tensor) -> None:
    told = answer(full, student)
    alone = tokens_of("teacher", told, None, V)
    assert alone.overlap is None
    assert torch.equal(alone.ids, tokens_of("teacher", told, student, V).ids)


def test_an_id_without_mass_is_seen(full: Tensor, student: Tensor) -> None:
    told = answer(full, student)
    told["token_logprobs"][4, 2] = -torch.inf
    assert tokens_of("student", told, student, V).impossible().nonzero().flatten().tolist() == [4]


def test_among_is_membership_row_by_row() -> None:
    ids = torch.tensor([[3, 5, -1], [9, 0, 2]])
    others = torch.tensor([[5, 7], [1, 2]])
    assert among(ids, others).tolist() == [[False, True, False], [False, False, True]]
