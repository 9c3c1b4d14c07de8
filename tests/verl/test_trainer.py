"""Whole steps of verl's v1 trainer over TransferQueue, without a reference worker: what it learns, and what it waits for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
import transfer_queue
from conftest import TOLERANCE, Config, rows, worker
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

STEPS = 2


@pytest.fixture(scope="module")
def queue(config: Config) -> Iterator[None]:
    settings = config().transfer_queue
    settings.backend.SimpleStorage.num_data_storage_units = 1
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    transfer_queue.init(settings)
    yield
    transfer_queue.close()
    ray.shutdown()


def put(partition: str, seed: int) -> KVBatchMeta:
    """A rollout as verl's agent loops leave it: one key for each row, the reward on its last token."""
    fields, keys, tags = [], [], []
    for i, row in enumerate(rows(seed)):
        reward = torch.zeros(len(row["responses"]))
        reward[-1] = float(i % 3)
        fields.append({"uid": f"u{len(row['prompts'])}", "rm_scores": reward, **row})
        keys.append(f"u{len(row['prompts'])}_{i}_{seed}")
        tags.append({"seq_len": len(row["input_ids"])})
    transfer_queue.kv_batch_put(keys=keys, partition_id=partition, fields=list_of_dict_to_tensordict(fields), tags=tags)
    return KVBatchMeta(keys=keys, tags=tags, partition_id=partition, extra_info={})


def column(of: KVBatchMeta, name: str) -> torch.Tensor:
    return transfer_queue.kv_batch_get(keys=of.keys, partition_id=of.partition_id, select_fields=[name])[name].values()


def step(trainer: Any, of: KVBatchMeta) -> tuple[dict[str, Any], KVBatchMeta, float]:
    """What `_step_once` does after the rollout, in its order; its figures, and its seconds."""
    metrics: dict[str, Any] = {}
    started = time.perf_counter()
    for part in ("_compute_old_log_prob", "_compute_ref_log_prob", "_compute_advantage", "_update_actor"):
        of = getattr(trainer, part)(of, metrics)
    return metrics, of, time.perf_counter() - started


@pytest.fixture(scope="module")
def trainers(queue: None, config: Config, url: str, own: Any) -> tuple[Any, Any]:
    """verl's trainer with verl's own reference, and the registered one; an actor of its own each."""
    local = TRAINER_REGISTRY["sync"](config("trainer.v1.trainer_mode=sync"))
    local.actor_rollout_wg, local.ref_in_actor = worker(local.config, "actor"), False
    local.ref_policy_wg = SimpleNamespace(compute_ref_log_prob=own.compute_log_prob)
    asked = config("trainer.v1.trainer_mode=sync_refserver", f"+trainer.v1.refserver.url={url}")
    remote = TRAINER_REGISTRY["sync_refserver"](asked)
    remote.actor_rollout_wg = worker(remote.config, "actor")
    return local, remote


def test_the_registered_trainer_has_no_reference_worker(trainers: tuple[Any, Any]) -> None:
    _, remote = trainers
    assert remote.trainer_mode == "sync"
    remote._init_resource_pool_mgr()
    assert set(remote.role_worker_mapping) == {Role.ActorRollout}


def test_it_learns_what_verl_learns_with_its_own_reference(
    trainers: tuple[Any, Any], report: Callable[[str, object], None]
) -> None:
    local, remote = trainers
    pending: list[bool] = []
    forward = remote.actor_rollout_wg.compute_log_prob

    def seen(of: Any) -> Any:
        pending.append(remote._waiting is not None)
        return forward(of)

    remote.actor_rollout_wg.compute_log_prob = seen
    waits, worst = [], 0.0
    for seed in range(STEPS):
        one, of_one, _ = step(local, put("local", seed))
        two, of_two, took = step(remote, put("remote", seed))
        worst = max(worst, float((column(of_one, "ref_log_prob") - column(of_two, "ref_log_prob")).abs().max()))
        for name in ("actor/pg_loss", "actor/kl_loss", "actor/grad_norm"):
            report(f"step {seed} {name}, verl's own / served", f"{one[name]:.6f} {two[name]:.6f}")
            assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-6), name
        assert two["reference/prompts"] == 2  # of eight rows
        waits.append(two["reference/wait_s"] / took)
    assert pending == [True] * STEPS  # the request was out before the actor's forward began
    assert worst <= TOLERANCE
    assert two["actor/kl_loss"] > 1e-6  # the second step has a reference that is not the policy
    report("trainer: largest difference from verl's own reference", worst)
    report("trainer: share of a step that waits", f"{[round(w, 4) for w in waits]}")
