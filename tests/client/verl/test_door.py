"""What verl hands over is asked once per prompt, and each score stands where verl reads it."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from grpo_client import Status
from grpo_client.verl.rows import rows_of, submit

from .conftest import Client

PROMPTS, RESPONSES = [[1, 2, 3], [9], [1, 2, 3]], [[4, 5], [6, 7, 8], [10]]


def nested(rows: list[list[int]]) -> torch.Tensor:
    return torch.nested.as_nested_tensor([torch.tensor(row) for row in rows], layout=torch.jagged)


def batch(**more: Any) -> dict[str, Any]:
    return {"prompts": nested(PROMPTS), "responses": nested(RESPONSES), "temperature": 0.5, **more}


def engine(
    monkeypatch: pytest.MonkeyPatch, *, rank: int = 0, vocab: int = 50, name: str | None = None, **model: Any
) -> Any:
    module = importlib.import_module("grpo_client.verl.engine")
    monkeypatch.setattr(module, "ReferenceClient", Client)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    told = SimpleNamespace(hf_config=SimpleNamespace(vocab_size=vocab), **model)
    asked = SimpleNamespace(url="http://reference", reference_model=name)
    return module.RemoteReferenceEngine(told, asked, None, None)


@pytest.mark.parametrize("name", ["RemoteReference", "RemoteMegatronReference"])
@pytest.mark.usefixtures("verl")
def test_the_configuration_names_the_engine_and_tells_it_the_server(name: str) -> None:
    door = importlib.import_module("grpo_client.verl")
    config = getattr(door, name)(url="http://reference")
    assert (config.engine.strategy, config.engine.url) == ("grpo-refserver", "http://reference")
    assert config.engine.reference_model is None
    assert getattr(door, name)(url="http://reference", reference_model="b").engine.reference_model == "b"
    with pytest.raises(ValueError, match=r"actor_rollout_ref\.ref\.url is empty"):
        getattr(door, name)()


@pytest.mark.parametrize("name", [None, "b"])
@pytest.mark.usefixtures("verl")
def test_the_engine_asks_for_the_reference_that_it_is_told(name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    asking = engine(monkeypatch, name=name)
    asking.initialize()
    assert asking._client.model == name


@pytest.mark.usefixtures("verl")
def test_each_prompt_is_asked_once_and_each_score_stands_one_before_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    asking = engine(monkeypatch)
    asking.initialize()
    output = asking.infer_batch(batch())["model_output"]["log_probs"].unbind()
    assert asking._client.asked == [([[1, 2, 3], [9]], [[[4, 5], [10]], [[6, 7, 8]]], [0.5, 0.5])]
    for prompt, response, row in zip(PROMPTS, RESPONSES, output, strict=True):
        assert len(row) == len(prompt) + len(response)
        assert row[-len(response) - 1 : -1].tolist() == [-token / 2 for token in response]


@pytest.mark.usefixtures("verl")
def test_rows_of_one_prompt_at_two_temperatures_are_two_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    asking = engine(monkeypatch)
    asking.initialize()
    output = asking.infer_batch(batch(temperature=torch.tensor([0.5, 1.0, 2.0])))["model_output"]["log_probs"].unbind()
    assert asking._client.asked[0][2] == [0.5, 1.0, 2.0]
    assert output[2][-2].item() == -20


def test_padded_rows_are_read_by_their_mask() -> None:
    data = {
        "prompts": torch.tensor([[0, 1, 2], [5, 6, 7]]),
        "responses": torch.tensor([[3, 0], [8, 9]]),
        "attention_mask": torch.tensor([[0, 1, 1, 1, 0], [1, 1, 1, 1, 1]]),
    }
    assert rows_of(data) == ([[1, 2], [5, 6, 7]], [[3], [8, 9]])


@pytest.mark.usefixtures("verl")
def test_a_rank_that_does_not_ask_answers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = engine(monkeypatch, rank=1)
    silent.initialize()
    assert silent.infer_batch({}) == {}


@pytest.mark.usefixtures("verl")
def test_another_vocabulary_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="vocabulary of 50, the policy one of 51"):
        engine(monkeypatch, vocab=51).initialize()


@pytest.mark.usefixtures("verl")
@pytest.mark.parametrize("model", [{"lora_rank": 8}, {"lora": {"rank": 4}}, {"lora_adapter_path": "/adapter"}])
def test_an_actor_with_an_adapter_is_refused(monkeypatch: pytest.MonkeyPatch, model: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="the actor without its adapter"):
        engine(monkeypatch, **model)
    engine(monkeypatch, lora_rank=0, lora={"rank": 0}, lora_adapter_path=None)


@pytest.mark.parametrize("media", [[{"pixel_values": 1}, {}], [None, {"pixel_values": 1}]])
def test_images_are_refused(media: list[Any]) -> None:
    with pytest.raises(ValueError, match="multi_modal_inputs"):
        rows_of(batch(multi_modal_inputs=media))
    assert rows_of(batch(multi_modal_inputs=[{}, None])) == (PROMPTS, RESPONSES)


def test_a_score_that_is_not_finite_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "status", Status.NONFINITE)
    waiting = submit(Client("", "first"), PROMPTS, RESPONSES, 1.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="row 0: the reference has no finite score"):
        waiting.collect()
