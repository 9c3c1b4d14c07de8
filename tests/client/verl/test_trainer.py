"""The trainer without a reference worker: asked before the actor's forward, waited for after it."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from .conftest import Client
from .test_door import PROMPTS, RESPONSES, batch


class Batch:
    keys, partition_id = ["a", "b", "c"], "train"

    def __len__(self) -> int:
        return 3


class Settings(dict[str, Any]):
    """As OmegaConf's."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__  # type: ignore[assignment]


def settings(url: str | None = "http://reference", **model: Any) -> Any:
    v1 = Settings(trainer_mode="sync_refserver", **({} if url is None else {"refserver": {"url": url}}))
    rollout = Settings(temperature=0.5)
    return Settings(
        trainer=Settings(v1=v1), actor_rollout_ref=Settings(model=Settings(path="p", **model), rollout=rollout)
    )


@pytest.fixture
def trainer(verl: dict[str, type[Any]], monkeypatch: pytest.MonkeyPatch) -> Any:
    module = importlib.import_module("grpo_client.verl.trainer")
    monkeypatch.setattr(module, "ReferenceClient", Client)
    return verl["sync_refserver"](settings())


def test_it_asks_before_the_forward_and_collects_after_it(trainer: Any, queue: dict[str, Any]) -> None:
    queue.update(batch())
    asked, metrics = trainer._reference.asked, {}
    forward = type(trainer).__mro__[1]._compute_old_log_prob
    seen: list[int] = []

    def watching(self: Any, of: Any, figures: dict[str, Any]) -> Any:
        seen.append(len(asked))
        return forward(self, of, figures)

    type(trainer).__mro__[1]._compute_old_log_prob = watching
    try:
        trainer._compute_old_log_prob(Batch(), metrics)
    finally:
        type(trainer).__mro__[1]._compute_old_log_prob = forward
    assert seen == [1]
    trainer._compute_ref_log_prob(Batch(), metrics)
    assert len(asked) == 1
    assert [row.tolist() for row in queue["ref_log_prob"].unbind()] == [[-t / 2 for t in row] for row in RESPONSES]
    assert metrics["reference/prompts"] == len({tuple(p) for p in PROMPTS})
    assert metrics["reference/wait_s"] >= 0
    trainer._compute_ref_log_prob(Batch(), metrics)  # without a forward before it
    assert len(asked) == 2


def test_it_asks_for_the_reference_that_it_is_told(trainer: Any, verl: dict[str, type[Any]]) -> None:
    assert trainer._reference.model is None
    config = settings()
    config.trainer.v1.refserver["reference_model"] = "b"
    assert verl["sync_refserver"](config)._reference.model == "b"


def test_no_worker_is_made_and_verl_knows_the_trainer_by_its_own_name(trainer: Any) -> None:
    assert trainer.config.trainer.v1.trainer_mode == "sync"
    trainer._init_resource_pool_mgr()
    assert trainer.role_worker_mapping == {"ActorRollout": "worker"}
    assert trainer.mapping == {"ActorRollout": "pool"}
    trainer._setup()
    assert trainer.told == [False]
    assert trainer.use_reference_policy


@pytest.mark.usefixtures("trainer")
def test_what_cannot_be_is_refused(verl: dict[str, type[Any]]) -> None:
    with pytest.raises(ValueError, match=r"trainer\.v1\.refserver\.url is missing"):
        verl["sync_refserver"](settings(None))
    with pytest.raises(ValueError, match="the actor without its adapter"):
        verl["sync_refserver"](settings(lora_rank=4))
    with pytest.raises(ValueError, match="vocabulary of 50, the policy one of 51"):
        verl["sync_refserver"](settings(vocab=51))._compute_ref_log_prob(Batch(), {})


def test_the_trainer_is_not_registered_twice(verl: dict[str, type[Any]], trainer: Any) -> None:
    first = verl["sync_refserver"]
    importlib.reload(importlib.import_module("grpo_client.verl.trainer"))
    assert set(verl) == {"sync", "sync_refserver"}
    assert verl["sync_refserver"] is first
