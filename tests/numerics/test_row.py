"""One row under each normalizer: against float64, with the gradient p - y, and void where there is no distribution."""

from __future__ import annotations

import math

import pytest
import torch
from grpo_numerics.row import Row
from grpo_numerics.textbook import PROJECTIONS, Projection, naive

INF = math.inf
LOGITS = (1.2, 4.7, 3.1, 0.5, 2.9)


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
def test_float32_is_the_definition_in_float64(projection: Projection, temperature: float) -> None:
    row = Row(torch.tensor(LOGITS), projection, temperature=temperature)
    exact = naive(torch.tensor(LOGITS, dtype=torch.float64) / temperature, projection)
    # logits up to 16 in fp32 have an absolute error of 2^-20, which is a relative one of e to that
    torch.testing.assert_close(row.p.double(), exact.p, rtol=4e-6, atol=4e-6)
    entropy = -(exact.p * exact.logprobs).nan_to_num().sum()
    assert row.entropy.item() == pytest.approx(entropy.item(), abs=1e-5)
    if projection in ("softmax", "stablemax"):
        torch.testing.assert_close(row.logprobs.double(), exact.logprobs, rtol=0, atol=4e-6)
        assert row.loss(3).item() == -row.logprobs[3].item()


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_gradient_by_what_is_normalised_is_p_minus_y(projection: Projection) -> None:
    logits = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    row = Row(logits, projection, temperature=0.7)
    by_normalized, by_logits = torch.autograd.grad(row.loss(2), [row.normalized, logits])
    y = torch.nn.functional.one_hot(torch.tensor(2), 5)
    torch.testing.assert_close(by_normalized, row.p - y, rtol=0, atol=1e-9)
    slope = 1 / (1 + logits.abs() / 0.7) if projection == "stablemax" else 1.0
    torch.testing.assert_close(by_logits, by_normalized * slope / 0.7)


def test_a_sure_token_keeps_its_log_prob_and_its_gradient() -> None:
    logits = torch.tensor([0.0, 40.0], requires_grad=True)
    row = Row(logits, "softmax")
    (gradient,) = torch.autograd.grad(row.loss(1), logits)
    assert row.p[1] == 1
    assert row.logprobs[1].item() == pytest.approx(-math.exp(-40), rel=1e-6)
    assert gradient[1].item() == pytest.approx(-math.exp(-40), rel=1e-6)


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_masked_tokens_and_a_masked_row(projection: Projection) -> None:
    row = Row(torch.tensor([1.0, -INF, 3.0]), projection)
    assert (row.p[1], row.logprobs[1], row.loss(1)) == (0, -INF, INF)
    assert row.entropy.isfinite()
    void = Row(torch.full((3,), -INF), projection)
    assert void.p.isnan().all()
    assert void.entropy.isnan()


def test_a_temperature_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="temperature"):
        Row(torch.zeros(3), "softmax", temperature=0.0)
