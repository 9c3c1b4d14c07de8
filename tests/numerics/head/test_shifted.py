"""A head multiplied in bf16 around a constant a row: against float64, and where it must not be taken."""

import math

import pytest
import torch
from grpo_numerics import HeadSpec, score_rows


def head(rows=37, dim=64, vocab=700, spread=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, dim, generator=generator).bfloat16()
    weight = (torch.randn(vocab, dim, generator=generator) * spread).bfloat16()
    return hidden, weight, torch.randint(vocab, (rows,), generator=generator)


def logits_of(hidden, weight):
    return hidden.double() @ weight.double().T


def rounding(logits, targets):
    """How far each row's log-prob may be off: a logit at distance d from a constant within 1.1 of the largest is rounded by
    2^-9 (d + 1.1) at most (a half of bf16's last bit), and moves the log-sum-exp by as much times its probability."""
    others = logits.scatter(1, targets[:, None], -math.inf)  # the target's own is computed in float64
    weights = torch.softmax(logits, -1).scatter(1, targets[:, None], 0.0)
    distance = (logits.amax(-1, keepdim=True) - others).abs()
    return 2**-9 * (weights * (distance.nan_to_num(posinf=0.0) + 1.1)).sum(-1) + 1e-5


@pytest.mark.parametrize("spread", [0.05, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("tile", [None, (16, 64), (64, 700)])
def test_each_row_is_off_by_no_more_than_rounding_near_its_largest(spread, tile):
    hidden, weight, targets = head(spread=spread)
    logits = logits_of(hidden, weight)
    truth = torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0]
    off = (score_rows(hidden, weight, targets, shifted=True, tile=tile).logprobs - truth).abs()
    assert (off <= rounding(logits, targets)).all()


def test_it_is_far_closer_than_a_product_rounded_to_bf16():
    hidden, weight, targets = head(rows=256, vocab=3000, spread=0.5)
    truth = torch.logsumexp(logits_of(hidden, weight), -1)
    ours = score_rows(hidden, weight, targets, shifted=True, want={"logsumexp"}).logsumexp
    rounded = torch.logsumexp((hidden @ weight.T).float(), -1)
    assert (ours - truth).abs().mean() < 0.2 * (rounded - truth).abs().mean()


def test_largest_logits_that_come_late_are_not_rounded_from_afar():
    """The rows' largest logit rises by tens from tile to tile: each time its tile is multiplied again."""
    hidden, weight, targets = head(rows=20, vocab=640, spread=0.1)
    hidden[:, 0] = 1.0
    weight[:, 0] = torch.arange(640) // 64 * 40.0
    targets %= 64
    logits = logits_of(hidden, weight)
    ours = score_rows(hidden, weight, targets, shifted=True, want={"logsumexp"}, tile=(32, 64)).logsumexp
    assert ((ours - torch.logsumexp(logits, -1)).abs() <= rounding(logits, targets)).all()


def test_all_that_follows_the_product_is_applied():
    hidden, weight, targets = head(spread=0.5)
    bias = torch.linspace(-2, 2, 700)
    spec = HeadSpec(bias=bias, logit_scale=0.7, softcap=9.0)
    how = {"spec": spec, "temperature": 0.8, "want": {"entropy", "logsumexp"}, "token_ids": targets[:, None]}
    ours, fp32 = (score_rows(hidden, weight, targets, shifted=shifted, **how) for shifted in (True, False))
    for name in ("logprobs", "entropy", "logsumexp", "token_logprobs"):
        torch.testing.assert_close(getattr(ours, name), getattr(fp32, name), rtol=0, atol=2e-2)
        assert not torch.equal(getattr(ours, name), getattr(fp32, name)) or name == "token_logprobs"


def test_rows_without_a_distribution_stay_by_themselves():
    hidden, weight, targets = head(rows=8)
    clean = score_rows(hidden, weight, targets, shifted=True).logprobs
    hidden[1], hidden[3] = math.nan, math.inf
    got = score_rows(hidden, weight, targets, shifted=True).logprobs
    assert got.isnan().tolist() == [False, True, False, True, False, False, False, False]
    assert torch.equal(got[[0, 2, 4, 5, 6, 7]], clean[[0, 2, 4, 5, 6, 7]])


@pytest.mark.parametrize("how", [{"top_k": 3}, {"want": {"rank"}}])
def test_tokens_are_compared_in_fp32(how):
    hidden, weight, targets = head()
    ours, fp32 = (score_rows(hidden, weight, targets, shifted=shifted, **how) for shifted in (True, False))
    assert torch.equal(ours.logprobs, fp32.logprobs)


@pytest.mark.parametrize("types", [(torch.float32, torch.bfloat16), (torch.float32, torch.float32)])
def test_other_types_are_not_touched(types):
    hidden, weight, targets = head()
    hidden, weight = hidden.to(types[0]), weight.to(types[1])
    ours, fp32 = (score_rows(hidden, weight, targets, shifted=shifted).logprobs for shifted in (True, False))
    assert torch.equal(ours, fp32)
