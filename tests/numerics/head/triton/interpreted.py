"""What the Triton kernels compute, under Triton's interpreter, against float64. Run by `test_interpreted`.

In a process of its own, because Triton decides at import whether it compiles or interprets. fp32 and fp16 only: the
interpreter multiplies the bit patterns of bf16.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from grpo_numerics import HeadSpec, entropy, fused_logprobs, score_rows, token_logprobs
from grpo_numerics.head.choice import on_triton
from grpo_numerics.head.triton import blocks, gradient, tiles
from torch import Tensor

# What a GPU does in silence with infinities, numpy, on which the interpreter stands, does with a warning.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")

INF = math.inf


def random_head(rows: int, dim: int, vocab: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows + vocab)
    hidden, weight, bias = (
        torch.randn(shape, generator=generator).to(dtype) for shape in ((rows, dim), (vocab, dim), (vocab,))
    )
    return hidden, weight, bias, torch.randint(vocab, (rows,), generator=generator)


def whole_logits(hidden: Tensor, weight: Tensor, spec: HeadSpec) -> Tensor:
    z = hidden @ weight.T
    z = (z if spec.bias is None else z + spec.bias) * spec.logit_scale
    return z if spec.softcap is None else spec.softcap * torch.tanh(z / spec.softcap)


@pytest.mark.parametrize(
    ("dtype", "rows", "dim", "vocab", "normalizer", "with_bias", "scale", "cap"),
    [
        (torch.float32, 5, 40, 77, "softmax", False, 1.0, None),
        (torch.float32, 5, 40, 77, "stablemax", True, 0.7, 3.0),
        (torch.float16, 5, 40, 77, "softmax", True, 0.7, 30.0),
        (torch.float16, 3, 64, 150, "stablemax", False, 1.0, None),
        (torch.float32, 70, 33, 129, "softmax", True, 1.0, 2.0),
        (torch.float32, 1, 1, 1, "softmax", True, 1.0, None),
    ],
)
def test_figures_and_gradients_match_float64(
    dtype: torch.dtype,
    rows: int,
    dim: int,
    vocab: int,
    normalizer: Any,
    with_bias: bool,
    scale: float,
    cap: float | None,
) -> None:
    *tensors, targets = random_head(rows, dim, vocab, dtype)
    tensors = tensors if with_bias else tensors[:2]
    temperature = torch.linspace(0.5, 1.7, rows)
    upstream = torch.linspace(-1, 2, 2 * rows, dtype=torch.float64).view(2, rows)
    assert on_triton(tensors[0], tensors[1])

    def whole(kind: torch.dtype) -> tuple[Tensor, ...]:
        copies = [x.to(kind).requires_grad_() for x in tensors]
        z = whole_logits(copies[0], copies[1], HeadSpec(copies[2] if with_bias else None, scale, cap))
        figures = [of(z) for of in (logprobs_of, entropy_of)]
        loss = sum((u * f.double()).sum() for u, f in zip(upstream, figures, strict=True))
        assert isinstance(loss, Tensor)
        return (*(f.detach() for f in figures), *torch.autograd.grad(loss, copies))

    def logprobs_of(z: Tensor) -> Tensor:
        return token_logprobs(z, targets, temperature=temperature, normalizer=normalizer)

    def entropy_of(z: Tensor) -> Tensor:
        return entropy(z, temperature=temperature, normalizer=normalizer)

    copies = [x.clone().requires_grad_() for x in tensors]
    figures = fused_logprobs(
        copies[0],
        copies[1],
        targets,
        spec=HeadSpec(copies[2] if with_bias else None, scale, cap),
        temperature=temperature,
        normalizer=normalizer,
        return_entropy=True,
    )
    loss = sum((u * f.double()).sum() for u, f in zip(upstream, figures, strict=True))
    assert isinstance(loss, Tensor)
    found = (*(f.detach() for f in figures), *torch.autograd.grad(loss, copies))
    exact, naive = whole(torch.float64), whole(torch.float32)
    for i, (mine, truth, plain) in enumerate(zip(found, exact, naive, strict=True)):
        # Twice plain torch's error in fp32; where that happens to be exact, 16 roundings: products, transforms, log,
        # exp, sums, slope; and for gradients one rounding to the input's dtype.
        eps = 16 * torch.finfo(torch.float32).eps + (torch.finfo(dtype).eps if i > 1 else 0.0)
        size = truth.norm() + (0.0 if i > 1 else math.sqrt(rows) * 8.0)  # log-probs round as the logits do, up to 8
        slack = 2 * (plain.double() - truth).norm() + eps * size
        assert (mine.double() - truth).norm() <= slack, i
    assert found[0].dtype == torch.float32
    assert all(gradient.dtype == dtype for gradient in found[2:])


@pytest.mark.parametrize("normalizer", ["softmax", "stablemax"])
def test_hard_rows(normalizer: Any) -> None:
    """Masked and huge logits through the bias, in tiles far apart; whole tiles of masks before the first token."""
    row = torch.tensor([-INF, 1000.0, 1001.0, -INF, 995.0, -1e30, 990.0])
    spread = 67  # wider than a block
    bias = torch.full((len(row) * spread,), -INF)
    bias[::spread] = row
    targets = torch.arange(len(row)) * spread
    hidden, weight = torch.zeros(len(row), 4), torch.zeros(len(bias), 4)
    scores = score_rows(
        hidden,
        weight,
        targets,
        spec=HeadSpec(bias),
        normalizer=normalizer,
        want={"entropy", "logsumexp", "rank"},
    )
    z = row.double()
    z = z.sign() * z.abs().log1p() if normalizer == "stablemax" else z
    log_p = z.log_softmax(-1)
    tolerance = 4 * torch.finfo(torch.float32).eps * 1001
    torch.testing.assert_close(scores.logprobs.double(), log_p, rtol=1e-6, atol=tolerance)
    assert scores.rank is not None
    assert scores.rank.tolist() == [int((z > value).sum()) for value in z]
    p = log_p.exp()
    expected = -(p * log_p.masked_fill(p == 0, 0.0)).sum().expand(len(row))
    assert scores.entropy is not None
    torch.testing.assert_close(scores.entropy.double(), expected, rtol=0, atol=2 * tolerance)
    assert scores.logsumexp is not None
    torch.testing.assert_close(scores.logsumexp.double(), z.logsumexp(-1).expand(len(row)), rtol=1e-6, atol=0)


def test_a_row_without_distribution_is_nan_and_it_alone() -> None:
    hidden, weight, _, targets = random_head(6, 8, 100, torch.float32)
    clean = score_rows(hidden, weight, targets)
    hidden[1, 2], hidden[4, 0] = math.nan, INF
    scores = score_rows(hidden, weight, targets, want={"rank", "entropy", "logsumexp"})
    bad = [False, True, False, False, True, False]
    assert scores.entropy is not None
    assert scores.logsumexp is not None
    assert scores.rank is not None
    for figure in (scores.logprobs, scores.entropy, scores.logsumexp):
        assert figure.isnan().tolist() == bad
    assert (scores.rank == -1).tolist() == bad
    good = ~torch.tensor(bad)
    assert torch.equal(scores.logprobs[good], clean.logprobs[good])
    masked = score_rows(hidden[:1], weight, targets[:1], spec=HeadSpec(torch.full((100,), -INF)))
    assert masked.logprobs.isnan().all()


def test_masked_tokens_reach_no_gradient() -> None:
    hidden, weight, bias, targets = random_head(4, 8, 50, torch.float32)
    hidden[2] = math.nan
    bias[7] = 200.0  # overflows in the padding unless that has probability 0
    keep = torch.tensor([True, True, False, True])
    for leaf in (hidden, weight, bias):
        leaf.requires_grad_()
    scores = fused_logprobs(hidden, weight, targets, spec=HeadSpec(bias))
    torch.where(keep, scores, 0.0).sum().backward()
    for leaf in (hidden, weight, bias):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
    assert hidden.grad is not None
    assert hidden.grad[2].eq(0).all()


@pytest.mark.parametrize("lead", [17.0, 80.0])
def test_a_sure_token_keeps_its_logprob_and_its_gradient(lead: float) -> None:
    weight, bias = torch.tensor([[0.0], [lead], [0.0]]), torch.zeros(3, requires_grad=True)
    score = fused_logprobs(torch.ones(1, 1), weight, torch.tensor([1]), spec=HeadSpec(bias))
    rest = math.exp(-lead)
    relative = 4 * lead * torch.finfo(torch.float32).eps
    assert score.item() == pytest.approx(-math.log1p(2 * rest), rel=relative)
    score.sum().backward()
    expected = torch.tensor([-rest, 2 * rest, -rest], dtype=torch.float64) / (1 + 2 * rest)
    assert bias.grad is not None
    torch.testing.assert_close(bias.grad.double(), expected, rtol=relative, atol=0)


def test_loops_over_blocks_of_a_tile_slices_and_row_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What only a large head does, made to happen in a small one: each loop of programs and launches runs twice."""
    monkeypatch.setattr(blocks, "_ENOUGH_TILES", 1)  # tiles of 256 columns, four blocks each
    monkeypatch.setattr(tiles, "ROWS", 16)
    monkeypatch.setattr(gradient, "SLICE", 160)
    hidden, weight, bias, targets = random_head(20, 35, 300, torch.float32)
    targets[1] = len(weight) - 1
    upstream = torch.linspace(-1, 2, 20)

    def gradients_of(kind: torch.dtype, fused: bool) -> tuple[Tensor, ...]:
        h, w, b = (x.to(kind).requires_grad_() for x in (hidden, weight, bias))
        scores = fused_logprobs(h, w, targets, spec=HeadSpec(b)) if fused else token_logprobs(h @ w.T + b, targets)
        return (scores.detach(), *torch.autograd.grad((upstream.to(kind) * scores).sum(), (h, w, b)))

    exact = gradients_of(torch.float64, fused=False)
    naive = gradients_of(torch.float32, fused=False)
    eps = 16 * torch.finfo(torch.float32).eps
    for found, truth, plain in zip(gradients_of(torch.float32, fused=True), exact, naive, strict=True):
        assert (found.double() - truth).norm() <= 2 * (plain.double() - truth).norm() + eps * truth.norm()


def test_a_row_has_the_same_bits_alone_and_in_a_batch() -> None:
    hidden, weight, _, targets = random_head(70, 40, 200, torch.float32)
    together = score_rows(hidden, weight, targets).logprobs
    for rows in (slice(3, 4), slice(60, 66)):
        assert torch.equal(score_rows(hidden[rows], weight, targets[rows]).logprobs, together[rows])


@pytest.mark.parametrize("k", [3, 30, 90])
def test_equal_logits_come_in_the_order_of_their_ids(k: int) -> None:
    levels = torch.arange(200) % 7
    scores = score_rows(torch.ones(2, 1), levels[:, None].float(), torch.tensor([6, 50]), top_k=k)
    expected = sorted(range(200), key=lambda i: (-int(levels[i]), i))[:k]
    assert scores.top_ids is not None
    assert scores.top_ids.tolist() == [expected, expected]


def test_other_dtypes_and_layouts_stay_with_torch() -> None:
    hidden, weight, _ = random_head(3, 8, 20, torch.float32)[:3]
    assert not on_triton(hidden.double(), weight.double())
    assert not on_triton(hidden, weight.half())
    assert not on_triton(hidden, weight.T.contiguous().T)
