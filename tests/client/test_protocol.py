"""The views of a result."""

from __future__ import annotations

import numpy as np
import pytest
from grpo_client import ScoreRequest, Status


@pytest.fixture
def result(scored):
    return scored(ScoreRequest.of([[1], [2]], [[[3, 4, 5], []], [[6]]], extras=["entropy"]))


def test_ragged(result) -> None:
    assert [len(r) for r in result.ragged()] == [3, 0, 1]
    assert np.concatenate(result.ragged()).tolist() == result.logprobs.tolist()
    assert all(np.shares_memory(r, result.logprobs) for r in result.ragged() if len(r))


def test_padded(result) -> None:
    values, mask = result.padded(fill=-7.0)
    assert values.shape == mask.shape == (3, 3)
    assert mask.tolist() == [[True, True, True], [False] * 3, [True, False, False]]
    assert values[mask].tolist() == result.logprobs.tolist()
    assert (values[~mask] == -7.0).all()
    assert result.padded(length=5)[0].shape == (3, 5)
    with pytest.raises(ValueError, match="longest completion"):
        result.padded(length=2)


def test_groups_and_completions(result) -> None:
    groups = list(result.groups())
    assert [len(group) for group in groups] == [2, 1]
    assert [c.logprobs.tolist() for group in groups for c in group] == [r.tolist() for r in result.ragged()]
    assert groups[1][0].extras["entropy"].tolist() == (-groups[1][0].logprobs).tolist()
    assert {c.status for c in result.completions()} == {Status.OK}
    assert len(result) == 3
