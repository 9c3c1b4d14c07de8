"""What the process is told before torch is imported, and that the operator has the last word."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from grpo_server.engine.environment import prepare


def test_exact_mode_asks_for_reproducible_products() -> None:
    env: dict[str, str] = {}
    prepare("exact", 2, env)
    assert env["MKL_CBWR"].endswith(",STRICT")
    assert env["OMP_NUM_THREADS"] == "2"


def test_idle_threads_wait_a_moment_alone_and_not_at_all_beside_a_trainer() -> None:
    alone: dict[str, str] = {}
    beside: dict[str, str] = {}
    prepare("fast", env=alone, load=0.0)
    prepare("fast", env=beside, share_cores=True, load=0.0)
    assert alone["OMP_WAIT_POLICY"] == beside["OMP_WAIT_POLICY"] == "PASSIVE"
    assert int(alone["GOMP_SPINCOUNT"]) > int(beside["GOMP_SPINCOUNT"]) == 0
    assert "MKL_CBWR" not in alone


def test_what_the_operator_has_set_stays() -> None:
    env = {"GOMP_SPINCOUNT": "7", "OMP_WAIT_POLICY": "ACTIVE", "MKL_CBWR": "COMPATIBLE"}
    before = dict(env)
    prepare("exact", env=env, share_cores=True)
    assert {name: env[name] for name in before} == before


def test_cores_that_others_use_at_the_start_are_noticed() -> None:
    alone: dict[str, str] = {}
    beside: dict[str, str] = {}
    prepare("fast", env=alone, load=0.1)
    prepare("fast", env=beside, load=float(os.cpu_count() or 1))
    assert (alone["GOMP_SPINCOUNT"], beside["GOMP_SPINCOUNT"]) == ("50000", "0")


@pytest.mark.parametrize(
    ("files", "threads"),
    [
        ({"cpu.max": "100000 100000"}, "1"),
        ({"cpu.max": "150000 100000"}, "1"),
        ({"cpu.max": "50000 100000"}, "1"),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "6400000 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, "1"),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_a_container_gets_as_many_threads_as_its_share_of_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], threads: str | None
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    env: dict[str, str] = {}
    prepare("fast", env=env, root=tmp_path, load=0.0)
    assert env.get("OMP_NUM_THREADS") == threads
    prepare("fast", 3, own := {}, root=tmp_path, load=0.0)
    assert own["OMP_NUM_THREADS"] == "3"
