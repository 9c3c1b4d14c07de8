"""A reference worker of verl's that holds no model, chosen by configuration alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import PROMPTS, RESPONSES, TOLERANCE, Config, batch, of_responses, worker
from grpo_client.verl.engine import RemoteReferenceEngine
from verl.workers.engine_workers import ActorRolloutRefWorker


@pytest.fixture(scope="module")
def reference(config: Config, served: list[str]) -> ActorRolloutRefWorker:
    return worker(config(*served), "ref")


@pytest.mark.parametrize(("temperature", "seed"), [(1.0, 1), (0.7, 2)])
def test_the_worker_says_what_verls_own_says(
    temperature: float,
    seed: int,
    own: ActorRolloutRefWorker,
    reference: ActorRolloutRefWorker,
    counted: Callable[[], tuple[float, float]],
    report: Callable[[str, object], None],
) -> None:
    assert isinstance(reference.ref.engine, RemoteReferenceEngine)
    expected = of_responses(own.compute_log_prob(batch(seed, temperature)), seed)
    asked, computed = counted()
    found = of_responses(reference.compute_ref_log_prob(batch(seed, temperature)), seed)
    asked, computed = counted()[0] - asked, counted()[1] - computed
    worst = float((found - expected).abs().max())
    report(f"engine, temperature {temperature}: largest difference", worst)
    assert worst <= TOLERANCE
    # One request, in which each of the two prompts went through the model once for its four responses.
    assert asked == 1
    assert computed <= sum(PROMPTS) + len(PROMPTS) * sum(RESPONSES)


def test_lora_is_refused_where_the_engine_is_made(config: Config, served: list[str]) -> None:
    with pytest.raises(ValueError, match="verl's reference is the actor without its adapter"):
        worker(config(*served, "actor_rollout_ref.model.lora_rank=8"), "ref")


def test_images_are_refused(reference: ActorRolloutRefWorker) -> None:
    data: Any = batch(3, 1.0)
    from tensordict import NonTensorStack

    data["multi_modal_inputs"] = NonTensorStack(*[{"pixel_values": torch.ones(1)}] * 8)
    with pytest.raises(ValueError, match="scores text alone"):
        reference.compute_ref_log_prob(data)
