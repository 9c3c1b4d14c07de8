"""A run with an environment: what is not the policy's is neither asked of the reference nor trained on, in no part of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from grpo_training.config import EnvironmentFailed, LossConfig, TrainConfig
from grpo_training.losses.grpo import Totals
from grpo_training.losses.objective import PortionData, portion_loss
from grpo_training.report.metrics import read_records
from grpo_training.rollouts.policy import Policy
from grpo_training.rollouts.rollout import Rollout
from grpo_training.run.loop import train
from grpo_training.run.portion import Portion
from transformers import LlamaForCausalLM

MakeConfig = Callable[..., TrainConfig]

OWN = """
class Twice:
    asynchronous = False
    def __init__(self):
        self.turns = 0
    def step(self, text):
        self.turns += 1
        return "12=" if self.turns == 1 else None

class Waits(Twice):
    async def step(self, text):
        return super().step(text)

class Fails:
    def step(self, text):
        raise OSError("the sandbox is gone")

def length(environments, completions, truncated, **columns):
    return [e.turns + len(c) % 7 / 7 for e, c in zip(environments, completions, strict=True)]

def turns(environment, completion):
    return environment.turns + len(completion) % 7 / 7
"""


@pytest.fixture
def environment_run(
    make_config: MakeConfig, reference_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., TrainConfig]:
    """A run of two steps whose every turn ends at once or with a letter that many tokens are."""
    (tmp_path / "own_environment.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(name: str = "Twice", **sections: dict[str, object]) -> TrainConfig:
        values: dict[str, dict[str, object]] = {
            "task": {"reward": "own_environment:length", "answer_pattern": None},
            "rollout": {
                "environment": f"own_environment:{name}",
                "max_new_tokens": 16,
                "stop": list("aeiou0123456789 "),
            },
            "loss": {"kind": "dapo"},
            "trainer": {"steps": 2, "samples": "all", "output": str(tmp_path / f"run-{name}")},
        }
        for section, fields in sections.items():
            values.setdefault(section, {}).update(fields)
        return make_config(reference_server.url, **values)

    return make


def test_the_reference_is_asked_of_what_the_policy_wrote(
    environment_run: Callable[..., TrainConfig], reference_server: Any
) -> None:
    config = environment_run()
    train(config)
    samples = read_records(config.trainer.output / "samples.jsonl")
    records = read_records(config.trainer.output / "metrics.jsonl")
    asked = [request.completion_mask for request in reference_server.requests]
    told = [m for s in samples for row in s["completion_mask"] for m in row]
    assert torch.cat([torch.from_numpy(mask) for mask in asked]).int().tolist() == told
    assert 0 in told
    for sample in samples:
        for name in ("policy_logprobs", "ref_logprobs", "entropy"):
            known = [[value is not None for value in row] for row in sample[name]]
            assert known == [[bool(mine) for mine in row] for row in sample["completion_mask"]]
        for turns, text in zip(sample["turns"], sample["completions"], strict=True):
            assert "".join(t["content"] for t in turns).replace(" ", "") == text.replace(" ", "")
            assert [t["role"] for t in turns] == ["assistant", "tool", "assistant"][: len(turns)]
    assert 1 < records[0]["completion/turns"] <= 2
    assert records[0]["completion/written"] < records[0]["completion/length"]
    assert records[0]["environment/cut"] == 0
    assert records[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert records[0]["policy/sampler_gap"] < 1e-4
    page = (config.trainer.output / "report.html").read_text()
    assert "<mark>12=</mark>" in page


def test_coroutines_and_evaluations_go_the_same_way(environment_run: Callable[..., TrainConfig]) -> None:
    found: list[list[dict[str, Any]]] = []
    for name in ("Twice", "Waits"):
        config = environment_run(
            name,
            task={"reward": "own_environment:turns"},
            eval={"every": 2, "prompts": 4, "completions": 2, "temperature": 1},
        )
        train(config)
        evaluated = read_records(config.trainer.output / "eval.jsonl")
        assert evaluated[0]["eval/held_out/reward"] > 1
        records = evaluated + read_records(config.trainer.output / "metrics.jsonl")
        found.append([{k: v for k, v in r.items() if "time/" not in k and "latency" not in k} for r in records])
    assert found[0] == found[1]


def test_a_tools_tokens_have_no_gradient(tiny: LlamaForCausalLM, ragged: Rollout) -> None:
    """d loss / d log-prob of a tool's token is exactly zero, whatever the loss, and its row never reaches the head."""
    rows = torch.arange(ragged.mask.shape[1]).expand_as(ragged.mask)
    masked = replace(ragged, by_policy=rows % 3 != 1)
    portion = Portion(masked)
    portion.rewarded(torch.tensor([1.0, -1.0, 0.5, -0.5]), torch.ones(4, dtype=torch.bool))
    logprobs = torch.randn(ragged.mask.shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    portion.old = logprobs.detach()
    portion.reference = logprobs.detach() - 1.0
    for kind in ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo"):
        for ratio in ("token", "sequence"):
            data: PortionData = portion.data(logprobs, None)
            totals = Totals(
                sequences=4,
                tokens=int(portion.mask.sum()),
                portions=1,
                max_tokens=6,
                portion_tokens=int(portion.mask.sum()),
            )
            loss = portion_loss(data, LossConfig(kind=kind, ratio=ratio, beta=0.1), totals, correction="none").loss
            [gradient] = torch.autograd.grad(loss, [logprobs])
            assert not gradient[~masked.loss_mask].any()
            assert gradient[masked.loss_mask].any()
    assert len(Policy(tiny)._loss_rows(masked)) == int(masked.loss_mask.sum())


def test_what_fails_ends_the_run_by_name(environment_run: Callable[..., TrainConfig]) -> None:
    with pytest.raises(EnvironmentFailed, match=r"own_environment:Fails\.step \(.*, turn 1\): OSError: the sandbox"):
        train(environment_run("Fails"))


def test_resumed_is_uninterrupted(environment_run: Callable[..., TrainConfig], tmp_path: Path) -> None:
    found: list[str] = []
    for name, steps in (("whole", (3,)), ("parts", (2, 3))):
        for until in steps:
            trainer = {"steps": until, "checkpoint_every": 1, "output": str(tmp_path / name)}
            train(environment_run(trainer=trainer), resume=True)
        found.append((tmp_path / name / "samples.jsonl").read_text().replace(name, ""))
    whole, parts = ([json.loads(line) for line in text.splitlines()] for text in found)
    assert whole == parts
