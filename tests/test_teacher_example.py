"""examples/swift_teacher.py: each figure in the place where the other trainer reads it.

ms-swift is not installed here; what it hands over and reads is written out. With it, see `doors/test_swift`.
"""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from grpo_client import ReferenceInfo, ScoreRequest, ScoreResult, Status

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
INFO = ReferenceInfo(
    model="m", fingerprint="f" * 64, version=1, dtype="float32", mode="exact", max_length=64, vocab_size=50
)


def told(request: ScoreRequest, status: Status = Status.OK) -> ScoreResult:
    """The log-prob of a token is minus its id over the temperature; the best after t is t + 1, t + 2 and so on."""
    before = [np.r_[g.prompt[-1:], c][:-1] for g in request.groups for c in g.completions]
    flat = np.concatenate([c for g in request.groups for c in g.completions])
    temperature = np.float32(request.groups[0].temperature)
    best = np.concatenate(before)[:, None] + 1 + np.arange(request.top_k)
    extras = {"top_ids": best.astype(np.int32), "top_logprobs": (-best / temperature).astype(np.float32)}
    return ScoreResult(
        reference=INFO,
        normalizer="softmax",
        temperature=np.array([temperature] * len(request.groups), dtype=np.float32),
        group_sizes=request.group_sizes,
        completion_lengths=request.completion_lengths,
        logprobs=(-flat / temperature).astype(np.float32),
        status=np.full(len(request.completion_lengths), status, dtype=np.uint8),
        extras=extras if request.top_k else {},
    )


class Client:
    status = Status.OK

    def __init__(self, url: str, **options: Any) -> None:
        self.url, self.options = url, options

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def score(self, prompts: Any, completions: Any, **what: Any) -> ScoreResult:
        return told(ScoreRequest.of(prompts, completions, **what), self.status)


def example(name: str) -> ModuleType:
    spec = spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def swift() -> ModuleType:
    return example("swift_teacher")


def test_swift_reads_rows_in_the_places_of_the_logits(swift: ModuleType) -> None:
    first, second = swift.teacher_rows(Client("http://teacher:1"), [[3, 7, 5], [4, 9]], 2, 2.0)
    assert [row.tolist() for row in first[1]] == [[4, 5], [8, 9]]
    assert [row.tolist() for row in first[0]] == [[-2.0, -2.5], [-4.0, -4.5]]
    assert [row.tolist() for row in second[1]] == [[5, 6]]


def test_swift_reads_the_token_itself_where_no_best_are_asked(swift: ModuleType) -> None:
    assert swift.teacher_rows(Client("http://teacher:1"), [[3, 7, 5]], 0) == [([[-7.0], [-5.0]], [[7], [5]])]


def test_swift_gets_no_number_without_a_score(swift: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert swift.teacher_rows(Client("http://teacher:1"), [], 2) == []
    with pytest.raises(ValueError, match="fewer than two"):
        swift.teacher_rows(Client("http://teacher:1"), [[3]], 2)
    monkeypatch.setattr(Client, "status", Status.NONFINITE)
    with pytest.raises(ValueError, match="1 of 1"):
        swift.teacher_rows(Client("http://teacher:1"), [[3, 7]], 2)


def test_swifts_trainer_asks_by_its_own_templates_ids(swift: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    class RolloutTrainerMixin:
        template = SimpleNamespace(encode=lambda request: {"input_ids": request.ids})

    mixin = SimpleNamespace(RolloutTrainerMixin=RolloutTrainerMixin)
    monkeypatch.setattr(swift.importlib, "import_module", {"swift.rlhf_trainers.rollout_mixin": mixin}.__getitem__)
    monkeypatch.setattr(swift, "ReferenceClient", Client)
    swift.use_served_teachers(temperature=2.0)
    trainer: Any = RolloutTrainerMixin()
    trainer.teacher_clients = [mixin.VLLMInferClient(base_urls=["http://teacher:1"])]
    handle = {"all_requests": [SimpleNamespace(ids=[3, 7])]}
    assert trainer._infer_teacher_requests(handle, topk=0) == [([[-3.5]], [[7]])]
    with pytest.raises(ValueError, match="text alone"):
        trainer._infer_teacher_requests({"all_requests": [SimpleNamespace(ids=[3, 7], images=["a.png"])]}, topk=0)
