"""The simulation of bursts: work is conserved, nothing is lost, and clients that begin alike do not meet at one replica."""

from __future__ import annotations

import pytest

from benchmarks.bursts import burst

FIGURES = {"request": 2048, "speed": 2000.0, "overhead": 0.0, "batch": 6144, "queue": 524_288}


def test_one_replica_takes_as_long_as_the_work() -> None:
    found = burst(1, ranks=8, tokens=2**18, **FIGURES)
    assert found.requests == 128
    assert found.wait == pytest.approx(2**18 / 2000.0)
    assert found.ideal == pytest.approx(found.wait)


def test_who_is_refused_comes_back_until_all_is_answered() -> None:
    found = burst(1, ranks=16, tokens=2**18, **{**FIGURES, "queue": 2**15})
    assert found.refused > 0
    assert found.wait >= found.ideal


@pytest.mark.parametrize("replicas", [8, 64])
def test_an_order_of_its_own_for_each_client_spreads_the_first_requests(replicas: int) -> None:
    own, same = (burst(replicas, ranks=64, tokens=2**20, placing=p, **FIGURES) for p in ("idle", "listed"))
    assert own.ideal <= own.wait <= same.wait
    if replicas == 64:
        assert own.wait < same.wait * 0.8


def test_prompts_that_stay_where_they_are_warm_cost_little() -> None:
    """A burst in which no prompt comes twice, so that being warm is worth nothing."""
    warm, idle = (burst(8, ranks=64, tokens=2**21, placing=p, **FIGURES) for p in ("prompt", "idle"))
    assert warm.requests == idle.requests == 1024
    assert warm.wait < idle.wait * 1.15
