"""examples/other_trainers: each figure in the place where the trainer reads it.

None of them is installed here; what they hand over is written out as their code has it.
"""

from __future__ import annotations

from concurrent.futures import Future
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from grpo_client import ReferenceInfo, ScoreRequest, ScoreResult, Status

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "other_trainers"
INFO = ReferenceInfo(
    model="m", fingerprint="f" * 64, version=1, dtype="float32", mode="exact", max_length=64, vocab_size=50
)


class Client:
    """The log-prob of a token is minus its id over the temperature."""

    status = Status.OK
    asked: list[tuple[Any, Any]]
    models: ClassVar[list[str | None]] = []  # of all clients, the names of the references that they ask

    def __init__(self, url: str, *, model: str | None, **_: Any) -> None:
        self.asked = []
        self.models.append(model)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, prompts: Any, completions: Any, temperature: list[float]) -> Future[ScoreResult]:
        self.asked.append((prompts, completions))
        request = ScoreRequest.of(prompts, completions, temperature=temperature)
        warmth = np.array(temperature, dtype=np.float32)
        scores = [-c.astype(np.float32) / t for g, t in zip(request.groups, warmth, strict=True) for c in g.completions]
        lengths = request.completion_lengths
        status = np.full(len(lengths), self.status, dtype=np.uint8)
        future: Future[ScoreResult] = Future()
        future.set_result(
            ScoreResult(INFO, "softmax", warmth, request.group_sizes, lengths, np.concatenate(scores), status)
        )
        return future


def example(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ReferenceClient", Client)
    monkeypatch.setenv("GRPO_REFERENCE_URL", "http://r")
    return module


def sample(tokens: list[int], response: int, reward: float) -> Any:
    return SimpleNamespace(tokens=tokens, response_length=response, get_reward_value=lambda _: reward)


def test_slime_has_teacher_log_probs_and_its_rewards_by_group(monkeypatch: pytest.MonkeyPatch) -> None:
    module = example("slime_reference", monkeypatch)
    args = SimpleNamespace(
        rollout_temperature=0.5, rewards_normalization=True, advantage_estimator="grpo", grpo_std_normalization=True,
        n_samples_per_prompt=2,
    )  # fmt: skip
    samples = [
        sample([3, 4, 9], 1, 1.0),
        sample([3, 4, 6, 7], 2, 0.0),
        sample([5, 8, 8], 2, 2.0),
        sample([5, 2], 1, 2.0),
    ]
    raw, rewards = module.post_process_rewards(args, samples)
    assert [s.teacher_log_probs.tolist() for s in samples] == [[-18], [-12, -14], [-16, -16], [-4]]
    assert raw == [1, 0, 2, 2]
    # 1 and 0 have a deviation of the square root of a half, as slime's torch.std has it.
    assert rewards == pytest.approx([0.5**0.5, -(0.5**0.5), 0, 0], abs=1e-5)
    args.rewards_normalization = False
    assert module.post_process_rewards(args, samples)[1] == raw
    monkeypatch.setattr(Client, "status", Status.NONFINITE)
    with pytest.raises(ValueError, match="row 0: the reference has no finite score"):
        module.post_process_rewards(args, samples)


def test_nemo_rl_reads_a_tokens_score_at_its_own_place(monkeypatch: pytest.MonkeyPatch) -> None:
    module = example("nemo_rl_reference", monkeypatch)

    class Data(dict[str, Any]):
        def __init__(self, **columns: Any) -> None:
            super().__init__(columns)

    class Policy:
        def __init__(self, **given: Any) -> None:
            self.given = given

    policy = module.served(Policy, "http://r", temperature=0.5)(config=1, init_reference_model=True)
    assert policy.given == {"config": 1, "init_reference_model": False}
    # The second row is a conversation: what the environment wrote in the middle is scored too, and masked by NeMo-RL.
    data = Data(
        input_ids=torch.tensor([[3, 4, 5, 6, 0], [3, 4, 7, 8, 9]]),
        input_lengths=torch.tensor([4, 5]),
        token_mask=torch.tensor([[0, 0, 1, 1, 0], [0, 0, 1, 0, 1]]),
    )
    found = policy.get_reference_policy_logprobs(data, timer=None)
    assert isinstance(found, Data)
    assert found["reference_logprobs"].tolist() == [[0, 0, -10, -12, 0], [0, 0, -14, -16, -18]]
    assert policy._reference.asked == [([[3, 4]], [[[5, 6], [7, 8, 9]]])]  # the prompt once


def test_openrlhf_reads_action_columns_of_every_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    module = example("openrlhf_reference", monkeypatch)
    group = module.ServedReference("http://r", put=lambda value: value, copies=2)
    strategy = SimpleNamespace(args=SimpleNamespace(rollout=SimpleNamespace(temperature=0.5)))
    assert group.async_init_model_from_pretrained(strategy, "model") == []
    refs = group.async_run_method_batch(
        "forward",
        sequences=[torch.tensor([[0, 3, 4, 6], [3, 4, 7, 0]]), torch.tensor([[3, 4, 8]])],
        action_mask=[torch.tensor([[0, 1, 1], [0, 1, 0]]), torch.tensor([[0, 1]])],
        attention_mask=[torch.tensor([[0, 1, 1, 1], [1, 1, 1, 0]]), torch.tensor([[1, 1, 1]])],
    )
    assert len(refs) == 2
    # As OpenRLHF's _flatten_results does: one of the copies, all micro-batches in it.
    flat = [one.tolist() for ref in refs[::2] for one in ref]
    assert flat == [[[0, -8, -12], [0, -14, 0]], [[0, -16]]]
    assert group.async_run_method("empty_cache") == []
    with pytest.raises(ValueError, match="text alone"):
        group.async_run_method_batch(
            "forward", sequences=[], action_mask=[], attention_mask=[], mm_train_inputs_list=[1]
        )


def test_open_instruct_reads_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    module = example("open_instruct_reference", monkeypatch)
    data = SimpleNamespace(
        query_responses=[torch.tensor([[3, 4, 5, 6, 3, 4, 7, 0]]), torch.tensor([[3, 4, 9, 8]])],
        attention_masks=[torch.tensor([[1, 1, 1, 1, 2, 2, 2, 0]]), torch.tensor([[1, 1, 1, 1]])],
        response_masks=[torch.tensor([[0, 0, 1, 1, 0, 0, 1, 0]]), torch.tensor([[0, 0, 1, 0]])],
    )
    local = module.asking(lambda model, data, pad, temperature, **_: ["its own"])
    assert local(torch.nn.Linear(1, 1), data, 0, 0.5, use_grad=False) == ["its own"]
    served = module.Served("http://r")
    first, second = local(served, data, 0, 0.5, use_grad=False)
    assert first.tolist() == [[1, -10, -12, 1, 1, -14, 1]]
    assert second.tolist() == [[1, -18, 1]]
    assert served.client.asked == [([[3, 4]], [[[5, 6], [7], [9]]])]
    assert not served.state_dict()  # a checkpoint of it is empty


def test_each_asks_for_the_reference_that_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "models", [])
    monkeypatch.setenv("GRPO_REFERENCE_MODEL", "b")
    slime = example("slime_reference", monkeypatch)
    told = SimpleNamespace(rollout_temperature=1.0, rewards_normalization=False)
    slime.post_process_rewards(told, [sample([3, 4], 1, 1.0)])
    policy = type("Policy", (), {"__init__": lambda self, **given: None})
    example("nemo_rl_reference", monkeypatch).served(policy, "http://r", temperature=1.0, reference_model="b")()
    example("openrlhf_reference", monkeypatch).ServedReference("http://r", put=id, reference_model="b")
    example("open_instruct_reference", monkeypatch).Served("http://r", "b")
    assert Client.models == ["b"] * 4
