"""examples/verl_reference.py: what verl hands over, asked once per prompt, and each score where verl reads it.

verl is not installed here. Of it there is what the example names: a configuration, a registry and the reader of a batch.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from grpo_client import ReferenceInfo, ScoreRequest, ScoreResult, Status

EXAMPLE = Path(__file__).resolve().parents[1] / "examples/verl_reference.py"
INFO = ReferenceInfo(
    model="m", fingerprint="f" * 64, version=1, dtype="float32", mode="exact", max_length=64, vocab_size=50
)


@dataclass
class ActorConfig:
    strategy: str = "fsdp"
    engine: Any = field(default_factory=SimpleNamespace)

    def __post_init__(self) -> None:
        self.engine.strategy = self.strategy


class Client:
    """Scores of a token: minus its id."""

    status = Status.OK

    def __init__(self, url: str, fingerprint: str, **_: Any) -> None:
        self.url, self.fingerprint, self.asked = url, fingerprint, []

    def wait_ready(self) -> ReferenceInfo:
        return INFO

    def score(self, prompts: Any, completions: Any, temperature: float) -> ScoreResult:
        self.asked.append((prompts, completions, temperature))
        request = ScoreRequest.of(prompts, completions, temperature=temperature)
        ids = np.concatenate([c for group in request.groups for c in group.completions])
        sizes = np.array([len(group.completions) for group in request.groups], dtype=np.int32)
        lengths = request.completion_lengths
        status = np.full(len(lengths), self.status, dtype=np.uint8)
        warmth = np.full(len(sizes), temperature, dtype=np.float32)
        return ScoreResult(INFO, "softmax", warmth, sizes, lengths, -ids.astype(np.float32), status)


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    names = ["verl", "verl.utils", "verl.workers", "verl.workers.config", "verl.workers.engine"]
    modules = {name: ModuleType(name) for name in names}
    registry = SimpleNamespace(register=lambda **where: lambda engine: engine)
    modules["verl.utils"].tensordict_utils = SimpleNamespace(get_non_tensor_data=dict.get)
    modules["verl.workers.config"].FSDPActorConfig = ActorConfig
    modules["verl.workers.engine"].BaseEngine = object
    modules["verl.workers.engine"].EngineRegistry = registry
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    spec = spec_from_file_location("verl_reference", EXAMPLE)
    assert spec
    assert spec.loader
    loaded = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "verl_reference", loaded)
    spec.loader.exec_module(loaded)
    monkeypatch.setattr(loaded, "ReferenceClient", Client)
    return loaded


def engine(example: ModuleType, monkeypatch: pytest.MonkeyPatch, *, rank: int = 0, vocab: int = 50) -> Any:
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    model = SimpleNamespace(hf_config=SimpleNamespace(vocab_size=vocab))
    return example.RemoteReferenceEngine(model, SimpleNamespace(url="http://reference"), None, None)


def nested(rows: list[list[int]]) -> torch.Tensor:
    return torch.nested.as_nested_tensor([torch.tensor(row) for row in rows], layout=torch.jagged)


def test_the_configuration_names_the_engine_and_tells_it_the_server(example: ModuleType) -> None:
    config = example.RemoteReference(url="http://reference")
    assert (config.engine.strategy, config.engine.url) == ("grpo-refserver", "http://reference")


def test_each_prompt_is_asked_once_and_each_score_stands_one_before_its_token(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking = engine(example, monkeypatch)
    asking.initialize()
    prompts, responses = [[1, 2, 3], [9], [1, 2, 3]], [[4, 5], [6, 7, 8], [10]]
    data = {"prompts": nested(prompts), "responses": nested(responses), "temperature": 0.7}
    output = asking.infer_batch(data)["model_output"]["log_probs"].unbind()
    assert asking._client.asked == [([[1, 2, 3], [9]], [[[4, 5], [10]], [[6, 7, 8]]], 0.7)]
    for prompt, response, row in zip(prompts, responses, output, strict=True):
        assert len(row) == len(prompt) + len(response)
        assert row[-len(response) - 1 : -1].tolist() == [-float(token) for token in response]


def test_a_rank_that_does_not_ask_answers_nothing(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = engine(example, monkeypatch, rank=1)
    silent.initialize()
    assert silent.infer_batch({}) == {}


def test_another_vocabulary_ends_the_run(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="vocabulary of 50, the policy one of 51"):
        engine(example, monkeypatch, vocab=51).initialize()


def test_a_score_that_is_not_finite_ends_the_run(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    asking = engine(example, monkeypatch)
    asking.initialize()
    asking._client.status = Status.NONFINITE
    with pytest.raises(ValueError, match="row 0: the reference has no finite score"):
        asking.infer_batch({"prompts": nested([[1]]), "responses": nested([[2]])})
