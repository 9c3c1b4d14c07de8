"""Single tokens out of a row: the k best, asked ids, and the mass outside both, against float64 over the whole vocabulary.

Run as it is for the torch tiles, and by `triton/test_interpreted` once more for the kernels.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from grpo_numerics import HeadScores, HeadSpec, score_rows
from torch import Tensor

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")

INF = math.inf
# Two fp32 sums of products of this size, and one rounding of a logit up to 50.
TOLERANCE = 8 * 50 * torch.finfo(torch.float32).eps


def random_head(rows: int, dim: int, vocab: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden, weight = (torch.randn(shape, generator=generator) for shape in ((rows, dim), (vocab, dim)))
    return hidden.to(dtype), weight.to(dtype), torch.randint(vocab, (rows,), generator=generator)


def whole(hidden: Tensor, weight: Tensor, spec: HeadSpec | None = None, normalizer: str = "softmax") -> Tensor:
    """(R, V) log-probs in float64."""
    z = hidden.double() @ weight.double().T
    if spec is not None:
        z = (z if spec.bias is None else z + spec.bias.double()) * spec.logit_scale
        z = z if spec.softcap is None else spec.softcap * torch.tanh(z / spec.softcap)
    return (z.sign() * z.abs().log1p() if normalizer == "stablemax" else z).log_softmax(-1)


def tail_outside(log_p: Tensor, ids: Tensor) -> Tensor:
    """(R,) log of the mass outside ids (R, j)."""
    rest = log_p.clone()
    for row, taken in zip(rest, ids.tolist(), strict=True):
        row[[i for i in taken if i >= 0]] = -INF
    return rest.logsumexp(-1)


def check_top(scores: HeadScores, log_p: Tensor, k: int, tolerance: float = TOLERANCE) -> None:
    assert scores.top_ids is not None
    assert scores.top_logprobs is not None
    assert scores.top_ids.dtype == torch.int32
    ids = scores.top_ids.long()
    assert all(len(set(row)) == k for row in ids.tolist())
    own = log_p.gather(1, ids)
    torch.testing.assert_close(scores.top_logprobs.double(), own, rtol=1e-6, atol=tolerance)
    torch.testing.assert_close(own, log_p.topk(k).values, rtol=1e-6, atol=tolerance)
    assert (scores.top_logprobs[:, :-1] >= scores.top_logprobs[:, 1:]).all()
    assert scores.top_tail is not None
    torch.testing.assert_close(scores.top_tail.double(), tail_outside(log_p, ids), rtol=1e-6, atol=4 * tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("k", "vocab", "normalizer", "cap"),
    [
        (1, 700, "softmax", None),
        (5, 700, "stablemax", None),
        (20, 333, "softmax", 8.0),
        (64, 700, "softmax", None),
        (65, 700, "softmax", None),
        (40, 40, "softmax", None),
        (130, 130, "stablemax", 8.0),
    ],
)
def test_the_best_and_the_mass_outside(
    k: int, vocab: int, normalizer: Any, cap: float | None, dtype: torch.dtype
) -> None:
    hidden, weight, targets = random_head(5, 24, vocab, dtype)
    spec = HeadSpec(torch.linspace(-1, 1, vocab), 0.8, cap)
    want: Any = {"tail", "entropy", "rank", "logsumexp"}
    scores = score_rows(hidden, weight, targets, spec=spec, normalizer=normalizer, want=want, top_k=k)
    log_p = whole(hidden, weight, spec, normalizer)
    check_top(scores, log_p, k)
    torch.testing.assert_close(
        scores.logprobs.double(), log_p.gather(1, targets[:, None])[:, 0], rtol=1e-6, atol=TOLERANCE
    )
    assert scores.entropy is not None
    entropy = -(log_p.exp() * log_p).sum(-1)
    torch.testing.assert_close(scores.entropy.double(), entropy, rtol=1e-6, atol=2 * TOLERANCE)
    plain = score_rows(hidden, weight, targets, spec=spec, normalizer=normalizer, want={"rank"})
    assert scores.rank is not None
    assert plain.rank is not None
    assert scores.rank.tolist() == plain.rank.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("k", [0, 8, 70])
def test_asked_ids_in_any_order_repeated_or_none(k: int, dtype: torch.dtype) -> None:
    hidden, weight, targets = random_head(20, 24, 500, dtype, seed=1)
    best = whole(hidden, weight).argmax(-1)
    ids = torch.stack(
        [targets, best, torch.full_like(targets, 499), targets * 0, best, targets * 0 - 1, targets // 2], 1
    )
    ids[3] = -1
    want: Any = {"tail", "entropy", "logsumexp", "rank"}
    scores = score_rows(hidden, weight, targets, want=want, top_k=k, token_ids=ids)
    log_p = whole(hidden, weight)
    expected = log_p.gather(1, ids.clamp(min=0)).masked_fill(ids < 0, -INF)
    assert scores.token_logprobs is not None
    assert scores.token_tail is not None
    torch.testing.assert_close(scores.token_logprobs.double(), expected, rtol=1e-6, atol=TOLERANCE)
    torch.testing.assert_close(scores.token_tail.double(), tail_outside(log_p, ids), rtol=1e-6, atol=4 * TOLERANCE)
    assert torch.equal(
        scores.token_logprobs[ids == targets[:, None]], scores.logprobs[(ids == targets[:, None]).nonzero()[:, 0]]
    )
    if k:
        check_top(scores, log_p, k)
        assert scores.top_logprobs is not None
        asked_best = scores.token_logprobs[:, 1]
        assert torch.equal(asked_best[ids[:, 1] >= 0], scores.top_logprobs[:, 0][ids[:, 1] >= 0])
    plain = score_rows(hidden, weight, targets, want={"entropy", "logsumexp"})
    for name in ("logprobs", "entropy", "logsumexp"):
        torch.testing.assert_close(getattr(scores, name), getattr(plain, name), rtol=1e-6, atol=TOLERANCE)


def test_no_ids_at_all_leave_everything_outside() -> None:
    hidden, weight, targets = random_head(3, 8, 50, torch.float32)
    scores = score_rows(hidden, weight, targets, want={"tail"}, token_ids=torch.zeros(3, 0, dtype=torch.int64))
    assert scores.token_logprobs is not None
    assert scores.token_logprobs.shape == (3, 0)
    assert scores.token_tail is not None
    torch.testing.assert_close(scores.token_tail, torch.zeros(3), rtol=0, atol=1e-6)


@pytest.mark.parametrize("k", [4, 80])
def test_worst_order_every_token_better_than_all_before(k: int) -> None:
    weight = torch.linspace(-20, 20, 900)[:, None]
    scores = score_rows(torch.ones(1, 1), weight, torch.tensor([3]), want={"tail"}, top_k=k)
    assert scores.top_ids is not None
    assert scores.top_ids.tolist() == [list(range(899, 899 - k, -1))]
    check_top(scores, whole(torch.ones(1, 1), weight), k)


@pytest.mark.parametrize("k", [6, 70])
def test_masked_tokens_are_the_last_of_the_best(k: int) -> None:
    bias = torch.full((200,), -INF)
    bias[[150, 7, 90]] = torch.tensor([3.0, 2.0, 2.0])
    spec = HeadSpec(bias)
    ids = torch.tensor([[150, 0, 7, 90]])
    scores = score_rows(
        torch.zeros(1, 4), torch.zeros(200, 4), torch.tensor([90]), spec=spec, want={"tail"}, top_k=k, token_ids=ids
    )
    assert scores.top_ids is not None
    assert scores.top_ids[0, :3].tolist() == [150, 7, 90]
    assert len(set(scores.top_ids[0].tolist())) == k
    assert scores.top_logprobs is not None
    assert scores.top_logprobs[0, 3:].eq(-INF).all()
    assert scores.token_logprobs is not None
    assert scores.token_logprobs[0, 1] == -INF
    for tail in (scores.top_tail, scores.token_tail):
        assert tail is not None
        assert tail.tolist() == [-INF]


@pytest.mark.parametrize("lead", [5.0, 12.0, 27.0])
def test_a_tiny_tail_keeps_its_precision(lead: float) -> None:
    """Mass down to 1e-12 outside, where one minus the rest is nothing but rounding."""
    weight = torch.zeros(300, 1)
    weight[[5, 200]] = lead
    ids = torch.tensor([[200, 5]])
    scores = score_rows(torch.ones(1, 1), weight, torch.tensor([5]), want={"tail"}, top_k=2, token_ids=ids)
    expected = math.log(298) - math.log(2 * math.exp(lead) + 298)
    for tail in (scores.top_tail, scores.token_tail):
        assert tail is not None
        assert tail.item() == pytest.approx(expected, abs=1e-5)


def test_a_target_that_is_the_best_is_told_alike_by_all() -> None:
    hidden, weight, _ = random_head(40, 24, 300, torch.float32, seed=2)
    targets = whole(hidden, weight).argmax(-1)
    for k in (1, 66):
        scores = score_rows(hidden, weight, targets, want={"rank"}, top_k=k, token_ids=targets[:, None])
        assert scores.rank is not None
        assert scores.top_ids is not None
        assert scores.top_logprobs is not None
        assert scores.token_logprobs is not None
        assert scores.rank.eq(0).all()
        assert torch.equal(scores.top_ids[:, 0].long(), targets)
        assert torch.equal(scores.top_logprobs[:, 0], scores.logprobs)
        assert torch.equal(scores.token_logprobs[:, 0], scores.logprobs)


@pytest.mark.parametrize("k", [3, 70])
def test_a_row_without_distribution_is_nan_and_it_alone(k: int) -> None:
    hidden, weight, targets = random_head(6, 8, 100, torch.float32)
    ids = torch.stack([targets, targets // 2], 1)
    asked: Any = {"want": {"tail"}, "top_k": k, "token_ids": ids}
    clean = score_rows(hidden, weight, targets, **asked)
    hidden[1, 2], hidden[4] = math.nan, INF
    scores = score_rows(hidden, weight, targets, **asked)
    bad = torch.tensor([False, True, False, False, True, False])
    for name in ("top_logprobs", "token_logprobs", "top_tail", "token_tail", "logprobs"):
        values, before = getattr(scores, name), getattr(clean, name)
        assert values[bad].isnan().all(), name
        assert torch.equal(values[~bad], before[~bad]), name
    assert scores.top_ids is not None
    assert 0 <= int(scores.top_ids.min()) <= int(scores.top_ids.max()) < 100


@pytest.mark.parametrize("k", [0, 10, 70])
def test_bits_of_a_row_do_not_depend_on_its_company(k: int) -> None:
    hidden, weight, targets = random_head(70, 32, 400, torch.float32, seed=3)
    ids = torch.stack([targets // 2, targets, targets // 3], 1)
    want: Any = {"tail", "entropy"}

    def scored(rows: slice) -> HeadScores:
        return score_rows(hidden[rows], weight, targets[rows], want=want, top_k=k, token_ids=ids[rows])

    together, names = scored(slice(0, 70)), ["logprobs", "entropy", "token_logprobs", "token_tail"]
    names += ["top_ids", "top_logprobs", "top_tail"] if k else []
    for rows in (slice(3, 4), slice(60, 66)):
        alone = scored(rows)
        for name in names:
            assert torch.equal(getattr(alone, name), getattr(together, name)[rows]), name


def test_a_tail_of_nothing_is_refused() -> None:
    hidden, weight, targets = random_head(2, 8, 30, torch.float32)
    with pytest.raises(ValueError, match="tail is the mass outside top_k or token_ids"):
        score_rows(hidden, weight, targets, want={"tail"})
