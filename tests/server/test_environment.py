"""What the process is told before torch is imported, and that the operator has the last word."""

from __future__ import annotations

from grpo_server.engine.environment import prepare


def test_exact_mode_asks_for_reproducible_products() -> None:
    env: dict[str, str] = {}
    prepare("exact", 2, env)
    assert env["MKL_CBWR"].endswith(",STRICT")
    assert env["OMP_NUM_THREADS"] == "2"


def test_idle_threads_wait_a_moment_alone_and_not_at_all_beside_a_trainer() -> None:
    alone: dict[str, str] = {}
    beside: dict[str, str] = {}
    prepare("fast", env=alone)
    prepare("fast", env=beside, share_cores=True)
    assert alone["OMP_WAIT_POLICY"] == beside["OMP_WAIT_POLICY"] == "PASSIVE"
    assert int(alone["GOMP_SPINCOUNT"]) > int(beside["GOMP_SPINCOUNT"]) == 0
    assert "MKL_CBWR" not in alone


def test_what_the_operator_has_set_stays() -> None:
    env = {"GOMP_SPINCOUNT": "7", "OMP_WAIT_POLICY": "ACTIVE", "MKL_CBWR": "COMPATIBLE"}
    before = dict(env)
    prepare("exact", env=env, share_cores=True)
    assert {name: env[name] for name in before} == before
