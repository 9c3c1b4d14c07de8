"""The small surface of verl that the door touches, as fakes: configuration, registries, TransferQueue, the trainer's steps.

verl itself is not installed here: it pins other versions of what is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from grpo_client import ReferenceInfo, ScoreRequest, ScoreResult, Status

INFO = ReferenceInfo(
    model="m", fingerprint="f" * 64, version=1, dtype="float32", mode="exact", max_length=64, vocab_size=50
)


@dataclass
class ActorConfig:
    strategy: str = "fsdp"
    engine: Any = field(default_factory=SimpleNamespace)

    def __post_init__(self) -> None:
        self.engine.strategy = self.strategy


@dataclass
class MegatronConfig:
    strategy: str = "megatron"
    engine: Any = field(default_factory=SimpleNamespace)

    def __post_init__(self) -> None:
        self.engine.strategy = "megatron"  # the real one leaves its engine's own in place


class Client:
    """Scores of a token: minus its id, times the temperature."""

    status = Status.OK

    def __init__(self, url: str, fingerprint: str, model: str | None = None) -> None:
        self.url, self.fingerprint, self.model, self.asked = url, fingerprint, model, []
        self.order: list[str] = []

    def wait_ready(self) -> ReferenceInfo:
        return INFO

    def submit(self, prompts: Any, completions: Any, temperature: list[float]) -> Future[ScoreResult]:
        self.asked.append((prompts, completions, temperature))
        request = ScoreRequest.of(prompts, completions, temperature=temperature)
        warmth = np.array(temperature, dtype=np.float32)
        scores = [-c.astype(np.float32) * t for g, t in zip(request.groups, warmth, strict=True) for c in g.completions]
        sizes = np.array([len(group.completions) for group in request.groups], dtype=np.int32)
        lengths = request.completion_lengths
        status = np.full(len(lengths), self.status, dtype=np.uint8)
        future: Future[ScoreResult] = Future()
        future.set_result(ScoreResult(INFO, "softmax", warmth, sizes, lengths, np.concatenate(scores), status))
        return future


class Trainer:
    """The order of a step, and what is looked at before one."""

    def __init__(self, config: Any) -> None:
        self.config, self.use_reference_policy = config, True
        self.told: list[Any] = []

    def _init_resource_pool_mgr(self) -> None:
        self.role_worker_mapping = {"ActorRolloutRef": "worker", "RefPolicy": "worker"}
        self.mapping = {"ActorRolloutRef": "pool"}

    def _setup(self) -> None:
        self.told.append(self.use_reference_policy)

    def _compute_old_log_prob(self, batch: Any, metrics: dict[str, Any]) -> Any:
        self.told.append("forward")
        return batch


@pytest.fixture
def queue() -> dict[str, Any]:
    """What TransferQueue holds of the batch."""
    return {}


@pytest.fixture
def verl(monkeypatch: pytest.MonkeyPatch, queue: dict[str, Any]) -> Iterator[dict[str, type[Any]]]:
    """The fakes in place; yields the registry of trainers."""
    names = [
        "verl", "verl.utils", "verl.utils.config", "verl.workers", "verl.workers.config", "verl.workers.engine", "verl.trainer",
        "verl.trainer.ppo", "verl.trainer.ppo.utils", "verl.trainer.ppo.v1", "verl.trainer.ppo.v1.trainer_base",
        "transfer_queue", "tensordict",
    ]  # fmt: skip
    fakes: dict[str, Any] = {name: ModuleType(name) for name in names}
    fakes["verl.utils"].tensordict_utils = SimpleNamespace(get_non_tensor_data=dict.get)
    fakes["verl.workers.config"].FSDPActorConfig = ActorConfig
    fakes["verl.workers.config"].McoreActorConfig = MegatronConfig
    fakes["verl.workers.engine"].BaseEngine = object
    fakes["verl.workers.engine"].EngineRegistry = SimpleNamespace(register=lambda **_: lambda engine: engine)
    fakes["verl.trainer.ppo.utils"].Role = SimpleNamespace(
        RefPolicy="RefPolicy", ActorRolloutRef="ActorRolloutRef", ActorRollout="ActorRollout"
    )
    fakes["verl.utils.config"].omega_conf_to_dataclass = lambda model: SimpleNamespace(
        hf_config=SimpleNamespace(vocab_size=model.get("vocab", 50))
    )
    registry: dict[str, type[Any]] = {"sync": Trainer}
    base = fakes["verl.trainer.ppo.v1.trainer_base"]
    base.TRAINER_REGISTRY = registry
    base.register_trainer = lambda name: lambda cls: registry.setdefault(name, cls)
    fakes["transfer_queue"].kv_batch_get = lambda keys, partition_id, select_fields: {
        n: queue[n] for n in select_fields
    }
    fakes["transfer_queue"].kv_batch_put = lambda keys, partition_id, fields: queue.update(fields)
    fakes["tensordict"].TensorDict = lambda fields, batch_size: fields
    for name, module in fakes.items():
        monkeypatch.setitem(sys.modules, name, module)
    ours = ("grpo_client.verl.engine", "grpo_client.verl.trainer")
    for name in ours:
        sys.modules.pop(name, None)
    yield registry
    for name in ours:
        sys.modules.pop(name, None)
