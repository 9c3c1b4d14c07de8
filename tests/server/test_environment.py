"""What the process is told before torch is imported, and that the operator has the last word."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import pytest
from grpo_server.cli import _all_imported, _collector_off
from grpo_server.engine.environment import set_environment


def test_exact_mode_asks_for_reproducible_products() -> None:
    env: dict[str, str] = {}
    set_environment("exact", 2, env)
    assert env["MKL_CBWR"].endswith(",STRICT")
    assert env["OMP_NUM_THREADS"] == "2"


@pytest.mark.parametrize("mode", ["auto", "exact", "invariant"])
def test_sums_of_a_product_are_not_split_where_bits_are_promised(mode: Any) -> None:
    set_environment(mode, env=(env := {}))
    assert env["MKL_CBWR"].endswith(",STRICT")
    assert env["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    assert env["CUBLASLT_WORKSPACE_SIZE"] == "1"
    set_environment("fast", env=(env := {}))
    assert not {"MKL_CBWR", "CUBLAS_WORKSPACE_CONFIG", "CUBLASLT_WORKSPACE_SIZE"} & env.keys()


def test_a_driver_that_is_told_to_round_is_told_otherwise_in_exact_mode_alone() -> None:
    for mode, value in (("exact", "0"), ("invariant", "1"), ("fast", "1")):
        set_environment(mode, env=(env := {"NVIDIA_TF32_OVERRIDE": "1"}))
        assert env["NVIDIA_TF32_OVERRIDE"] == value


def test_memory_of_a_gpu_grows_in_place_unless_its_allocator_is_configured() -> None:
    set_environment("fast", env=(env := {}))
    assert env["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"):
        set_environment("fast", env=(env := {name: "max_split_size_mb:64"}))
        assert {n: v for n, v in env.items() if "ALLOC" in n} == {name: "max_split_size_mb:64"}


def test_waiting_threads_spin_a_moment_and_not_at_all_beside_a_trainer() -> None:
    alone: dict[str, str] = {}
    beside: dict[str, str] = {}
    set_environment("fast", env=alone)
    set_environment("fast", env=beside, share_cores=True)
    assert alone["OMP_WAIT_POLICY"] == beside["OMP_WAIT_POLICY"] == "PASSIVE"
    assert int(alone["GOMP_SPINCOUNT"]) > int(beside["GOMP_SPINCOUNT"]) == 0
    assert "MKL_CBWR" not in alone


def test_progress_bars_are_for_a_terminal() -> None:
    for terminal in (True, False):
        set_environment("fast", env=(env := {}), terminal=terminal)
        bars = {name: value for name, value in env.items() if name in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS")}
        assert bars == ({} if terminal else {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"})


def test_what_the_operator_has_set_stays() -> None:
    env = {"GOMP_SPINCOUNT": "7", "OMP_WAIT_POLICY": "ACTIVE", "MKL_CBWR": "COMPATIBLE"}
    before = dict(env)
    set_environment("exact", env=env, share_cores=True)
    assert {name: env[name] for name in before} == before


@pytest.mark.parametrize("load", [0.0, 64.0])
def test_waiting_threads_spin_no_longer_than_an_operation_whoever_has_the_cores(
    monkeypatch: pytest.MonkeyPatch, load: float
) -> None:
    """Contention may come at any time, so what is set at the start must be right in it."""
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    set_environment("fast", env=(env := {}))
    assert 0 < int(env["GOMP_SPINCOUNT"]) <= 1000


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
    set_environment("fast", env=env, root=tmp_path)
    assert env.get("OMP_NUM_THREADS") == threads
    set_environment("fast", 3, own := {}, root=tmp_path)
    assert own["OMP_NUM_THREADS"] == "3"


def test_the_collector_rests_until_all_is_imported_and_whatever_happens_no_longer() -> None:
    with _collector_off():
        assert not gc.isenabled()
        _all_imported()
        assert gc.isenabled()
    gc.unfreeze()
    with pytest.raises(KeyError), _collector_off():
        raise KeyError
    assert gc.isenabled()
