"""The fused head against float64 over the whole logits: dtypes, odd shapes, transforms, hard rows, extras, memory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.special
import torch
from grpo_numerics import HeadSpec, score_rows
from grpo_numerics.head.score import Want
from torch import Tensor

INF = math.inf
EVERYTHING: frozenset[Want] = frozenset({"entropy", "logsumexp", "rank"})
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
TINY_TILE = (32, 48)  # forces several blocks and tiles, the last of each cut short
SPECS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"with_bias": True},
    "scale": {"logit_scale": 0.25},
    "cap": {"softcap": 3.0},
    "all": {"with_bias": True, "logit_scale": 0.7, "softcap": 5.0},
}


def random_head(rows: int, dim: int, vocab: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, dim, generator=generator).to(dtype)
    weight = torch.randn(vocab, dim, generator=generator).to(dtype)
    return hidden, weight, torch.randint(vocab, (rows,), generator=generator)


def whole_logits(
    hidden: Tensor, weight: Tensor, spec: HeadSpec, temperature: float | Tensor, normalizer: str, dtype: torch.dtype
) -> Tensor:
    """The head as a model writes it, all (R, V) of it, in the dtype given."""
    z = hidden.to(dtype) @ weight.to(dtype).T
    if spec.bias is not None:
        z = z + spec.bias.to(dtype)
    z = z * spec.logit_scale
    if spec.softcap is not None:
        z = spec.softcap * torch.tanh(z / spec.softcap)
    z = z / (temperature.to(dtype)[:, None] if isinstance(temperature, Tensor) else temperature)
    return torch.sign(z) * torch.log1p(z.abs()) if normalizer == "stablemax" else z


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "dim", "vocab"), [(1, 5, 7), (3, 17, 33), (70, 33, 1021), (40, 64, 1)])
@pytest.mark.parametrize("spec_of", SPECS.values(), ids=SPECS.keys())
@pytest.mark.parametrize("normalizer", ["softmax", "stablemax"])
def test_every_figure_matches_float64(
    dtype: torch.dtype, rows: int, dim: int, vocab: int, spec_of: dict[str, Any], normalizer: str
) -> None:
    hidden, weight, targets = random_head(rows, dim, vocab, dtype)
    spec_of = dict(spec_of)
    bias = torch.linspace(-2, 2, vocab).to(dtype) if spec_of.pop("with_bias", False) else None
    spec = HeadSpec(bias, **spec_of)
    temperature = torch.linspace(0.5, 1.7, rows)
    ids = torch.stack([targets, targets.flip(0), torch.zeros_like(targets)], 1)
    k = min(5, vocab)
    scores = score_rows(
        hidden,
        weight,
        targets,
        spec=spec,
        temperature=temperature,
        normalizer=normalizer,
        want=EVERYTHING,
        top_k=k,
        token_ids=ids,
        tile=TINY_TILE,
    )
    working = torch.float64 if dtype is torch.float64 else torch.float32
    exact = whole_logits(hidden, weight, spec, temperature, normalizer, torch.float64)
    naive = whole_logits(hidden, weight, spec, temperature, normalizer, working)
    log_p = exact.log_softmax(-1)

    def close(found: Tensor | None, of_logits: Any) -> None:
        """Within twice the error of plain torch in the same precision, and a few roundings of the largest logit."""
        assert found is not None
        assert found.dtype == working
        truth = of_logits(exact)
        slack = 2 * (of_logits(naive).double() - truth).abs().max() + 8 * torch.finfo(working).eps * (
            1 + exact.abs().max()
        )
        assert (found.double() - truth).abs().max() <= slack

    def of_ids(which: Tensor) -> Any:
        return lambda z: z.log_softmax(-1).gather(1, which)

    close(scores.logprobs[:, None], of_ids(targets[:, None]))
    close(scores.logsumexp, lambda z: z.logsumexp(-1))
    close(scores.entropy, lambda z: -(z.log_softmax(-1).exp() * z.log_softmax(-1)).sum(-1))
    close(scores.token_logprobs, of_ids(ids))
    close(scores.top_logprobs, lambda z: z.log_softmax(-1).topk(k, -1).values)
    assert scores.rank is not None
    assert scores.rank.dtype == torch.int32
    assert scores.top_ids is not None
    # Ids and ranks are those of the exact logits but where two logits are closer than the working precision.
    blur = 1e-5
    target = exact.gather(1, targets[:, None])
    assert bool((scores.rank >= (exact > target + blur).sum(-1)).all())
    assert bool((scores.rank <= (exact > target - blur).sum(-1)).all())
    torch.testing.assert_close(log_p.gather(1, scores.top_ids.long()), log_p.topk(k, -1).values, rtol=0, atol=2 * blur)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_weights_give_fp32_logits(dtype: torch.dtype) -> None:
    hidden, weight, targets = random_head(64, 256, 2000, dtype)
    exact = scipy.special.log_softmax((hidden.double() @ weight.double().T).numpy(), axis=-1)
    truth = torch.from_numpy(np.take_along_axis(exact, targets.numpy()[:, None], -1)[:, 0])
    found = (score_rows(hidden, weight, targets).logprobs.double() - truth).abs().max()
    rounded = (hidden @ weight.T).float().log_softmax(-1).gather(1, targets[:, None])[:, 0]
    assert found < 5e-5 < (rounded.double() - truth).abs().max() / 100


def test_mixed_dtypes() -> None:
    hidden, weight, targets = random_head(5, 16, 40, torch.float32)
    mixed = score_rows(hidden, weight.bfloat16(), targets).logprobs
    torch.testing.assert_close(mixed, score_rows(hidden, weight.bfloat16().float(), targets).logprobs)
    assert score_rows(hidden.double(), weight, targets).logprobs.dtype is torch.float64


@pytest.mark.parametrize("normalizer", ["softmax", "stablemax"])
def test_a_best_target_agrees_to_the_bit(normalizer: str) -> None:
    hidden, weight, _ = random_head(200, 24, 500, torch.float32)
    best = (hidden.double() @ weight.double().T).argmax(-1)
    scores = score_rows(
        hidden, weight, best, normalizer=normalizer, want=EVERYTHING, top_k=3, token_ids=best[:, None], tile=TINY_TILE
    )
    assert scores.rank is not None
    assert scores.top_ids is not None
    assert scores.top_logprobs is not None
    assert scores.token_logprobs is not None
    assert bool((scores.rank == 0).all())
    assert torch.equal(scores.top_ids[:, 0].long(), best)
    assert torch.equal(scores.top_logprobs[:, 0], scores.logprobs)
    assert torch.equal(scores.token_logprobs[:, 0], scores.logprobs)


def test_ties_and_top_k_of_the_whole_vocabulary() -> None:
    weight = torch.tensor([[1.0], [3.0], [3.0], [2.0], [3.0]])
    scores = score_rows(torch.ones(5, 1), weight, torch.arange(5), want=EVERYTHING, top_k=5, tile=(16, 16))
    assert scores.rank is not None
    assert scores.rank.tolist() == [4, 0, 0, 3, 0]
    assert scores.top_ids is not None
    assert [sorted(row[:3]) + row[3:] for row in scores.top_ids.tolist()] == [[1, 2, 4, 3, 0]] * 5


@pytest.mark.parametrize("lead", [17.0, 40.0, 80.0])
def test_a_sure_token_keeps_its_logprob(lead: float) -> None:
    weight = torch.tensor([[0.0], [lead], [0.0]])
    scores = score_rows(torch.ones(1, 1), weight, torch.tensor([1]), want=EVERYTHING)
    eps = torch.finfo(torch.float32).eps
    assert scores.logprobs.item() == pytest.approx(-math.log1p(2 * math.exp(-lead)), rel=4 * lead * eps)
    rest = 2 * math.exp(-lead)
    entropy = math.log1p(rest) + rest * lead / (1 + rest)
    assert scores.entropy is not None
    assert scores.entropy.item() == pytest.approx(entropy, rel=4 * lead * eps)


HARD_ROWS = {
    "small": [0.1, 0.2, 0.3, 0.4, 0.5],
    "large": [1, 92, 3, 0, 2],
    "very negative": [-100, -200, -300, -400, -500],
    "identical": [5, 5, 5, 5, 5],
    "masked": [1, -INF, 3, 0, 2],
    "thousands": [1000, 1001, 1002, 900, -1000],
    "half overflows": [11, 12, 13, 88, 89],
    "tiles of masks first": [-INF, -INF, -INF, -INF, 2],
    "stablemax traps": [0, 1, -1, 1e30, -1e30],
}


@pytest.mark.parametrize("normalizer", ["softmax", "stablemax"])
@pytest.mark.parametrize("row", HARD_ROWS.values(), ids=HARD_ROWS.keys())
def test_hard_rows(row: list[float], normalizer: str) -> None:
    """Logits given through the bias, spread so that each lies in a tile of its own."""
    spread = 16
    bias = torch.full((len(row) * spread,), -INF)
    bias[::spread] = torch.tensor(row)
    targets = torch.arange(len(row)) * spread
    hidden, weight = torch.zeros(len(row), 4), torch.zeros(len(bias), 4)
    scores = score_rows(
        hidden, weight, targets, spec=HeadSpec(bias), normalizer=normalizer, want=EVERYTHING, top_k=2, tile=(16, 16)
    )
    z = np.array(row, dtype=np.float32).astype(np.float64)
    z = np.sign(z) * np.log1p(np.abs(z)) if normalizer == "stablemax" else z
    log_p = scipy.special.log_softmax(z)
    eps = torch.finfo(torch.float32).eps
    tolerance = 4 * eps * max(1.0, np.abs(z[np.isfinite(z)]).max())
    np.testing.assert_allclose(scores.logprobs, log_p, rtol=0, atol=tolerance)
    entropy = scipy.special.entr(np.exp(log_p)).sum()
    np.testing.assert_allclose(scores.entropy, [entropy] * len(row), rtol=0, atol=tolerance * (1 + entropy))
    np.testing.assert_allclose(scores.logsumexp, [scipy.special.logsumexp(z)] * len(row), rtol=0, atol=tolerance)
    assert scores.rank is not None
    assert scores.rank.tolist() == [int((z > value).sum()) for value in z]


def test_a_row_without_distribution_is_nan_and_it_alone() -> None:
    hidden, weight, targets = random_head(40, 8, 100, torch.float32)
    clean = score_rows(hidden, weight, targets, want=EVERYTHING, top_k=2, tile=TINY_TILE)
    hidden[3, 2], hidden[33, 0] = math.nan, INF
    scores = score_rows(hidden, weight, targets, want=EVERYTHING, top_k=2, token_ids=targets[:, None], tile=TINY_TILE)
    bad = [3, 33]
    good = [row for row in range(40) if row not in bad]
    for figure in (scores.logprobs, scores.entropy, scores.logsumexp, scores.top_logprobs, scores.token_logprobs):
        assert figure is not None
        assert figure[bad].isnan().all()
        assert figure[good].isfinite().all()
    assert scores.rank is not None
    assert scores.rank[bad].tolist() == [-1, -1]
    assert torch.equal(scores.logprobs[good], clean.logprobs[good])
    masked = score_rows(hidden[:2], weight, targets[:2], spec=HeadSpec(torch.full((100,), -INF)), want=EVERYTHING)
    assert masked.logprobs.isnan().all()
    assert masked.logsumexp is not None
    assert masked.logsumexp.isnan().all()


def test_no_rows() -> None:
    hidden, weight, targets = random_head(0, 8, 100, torch.bfloat16)
    scores = score_rows(
        hidden, weight, targets, want=EVERYTHING, top_k=4, token_ids=torch.zeros(0, 3, dtype=torch.int64)
    )
    assert scores.logprobs.shape == (0,)
    assert scores.top_ids is not None
    assert scores.top_ids.shape == (0, 4)
    assert scores.token_logprobs is not None
    assert scores.token_logprobs.shape == (0, 3)


def test_inputs_are_left_as_they_were() -> None:
    hidden, weight, targets = random_head(20, 8, 50, torch.float32)
    copies = hidden.clone(), weight.clone(), targets.clone()
    score_rows(hidden, weight, targets, temperature=torch.full((20,), 0.7), want=EVERYTHING, top_k=3)
    assert all(torch.equal(a, b) for a, b in zip((hidden, weight, targets), copies, strict=True))
