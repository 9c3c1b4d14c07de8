"""OrthoGrad over sharded weights, on two gloo ranks: the same numbers as in one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

OnTwoRanks = Callable[..., dict[str, Any]]


def test_shards_are_projected_as_the_whole_tensor(on_two_ranks: OnTwoRanks) -> None:
    answer = on_two_ranks("orthograd_sharded")
    assert min(answer["empty"]) >= 2  # the uneven case was there
    for granularity, figures in answer["found"].items():
        cosine = figures.pop("twice")
        if granularity == "tensor":
            assert abs(cosine) < 1e-6
        figures.pop("empty shards")
        assert max(figures.values()) < 1e-6, (granularity, figures)
