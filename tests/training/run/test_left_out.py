"""Completions without a reward or without a score: left out alone, counted, named; averages are over the others."""

from __future__ import annotations

import json
import logging
import math
import uuid
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from grpo_client import ScoreRequest, ScoreResult, Status
from grpo_training.cli import app
from grpo_training.config import ConfigError, LossConfig, NothingTrained, TrainConfig
from grpo_training.losses import Totals, policy_loss
from grpo_training.losses.objective import PortionData, portion_loss
from grpo_training.report.metrics import read_records
from grpo_training.run import update
from grpo_training.run.loop import train
from grpo_training.tasks.rewards import as_reward
from grpo_training.tasks.task import Task
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

MakeConfig = Callable[..., TrainConfig]
Calls = list[tuple[PortionData, Totals]]
KINDS = ["grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo"]


def reward_file(directory: Path, body: str) -> dict[str, object]:
    """Fields of `task`: a reward that first counts its calls in `n`, from 0."""
    lines = ["import math", "calls = iter(range(10**9))", "def judge(answer, entry):", "    n = next(calls)"]
    name = f"reward_{uuid.uuid4().hex}"  # an imported module stays imported
    (directory / f"{name}.py").write_text("\n".join([*lines, f"    return {body}"]) + "\n")
    return {"reward": f"{name}:judge", "answer_pattern": None}


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, object]]:
    monkeypatch.syspath_prepend(str(tmp_path))
    return lambda body: reward_file(tmp_path, body)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What every pass handed to the loss."""
    seen: Calls = []

    def recording(data: PortionData, options: LossConfig, totals: Totals, **more: Any) -> Any:
        seen.append((replace(data, logprobs=data.logprobs.detach().clone()), totals))
        return portion_loss(data, options, totals, **more)

    monkeypatch.setattr(update, "portion_loss", recording)
    return seen


def forget(server: Any, config: TrainConfig, tokenizer: Any, lost: Callable[[int, int], bool]) -> None:
    """Let the server have no score for the completions for which lost(group of the run, its number) holds."""
    honest = server.score
    task = Task(config.task, tokenizer, seed=config.trainer.seed)
    asked = [p.prompt_ids for step in (0, 1) for p in task.problems(step, 4, config.trainer.seed)]

    def score(request: ScoreRequest) -> ScoreResult:
        result = honest(request)
        status, logprobs, at = result.status.copy(), result.logprobs.copy(), 0
        row = 0
        for group in request.groups:
            number = asked.index(group.prompt.tolist())
            for place, completion in enumerate(group.completions):
                if lost(number, place):
                    status[row] = Status.NONFINITE
                    logprobs[at : at + len(completion)] = math.nan
                at, row = at + len(completion), row + 1
        return replace(result, status=status, logprobs=logprobs)

    server.score = score


def together(calls: Calls, options: LossConfig) -> tuple[float, float]:
    """Loss and KL of the rows that are trained on, as if there had never been others."""

    def padded(rows: Tensor) -> Tensor:
        return torch.nn.functional.pad(rows, (0, 6 - rows.shape[1])) if rows.dim() == 2 else rows

    fields = ("logprobs", "old", "reference", "mask", "advantages")
    rows = {name: torch.cat([padded(getattr(data, name)) for data, _ in calls]) for name in fields}
    used = rows["mask"].any(-1)
    logprobs, old, reference, mask, advantages = (rows[name][used] for name in fields)
    terms = policy_loss(
        logprobs,
        advantages,
        mask,
        options,
        Totals(int(used.sum()), int(mask.sum()), 1, 6),
        old_logprobs=old,
        ref_logprobs=reference,
    )
    return float(terms.loss), float(terms.sums["kl"] / mask.sum())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("portions", [1, 2])
def test_averages_are_over_what_is_trained_on(
    make_config: MakeConfig, reference_server: Any, tokenizer: Any, task: Any, calls: Calls, kind: str, portions: int
) -> None:
    """Three completions of the first group and one of the last have no score, one of the second has no reward."""
    with torch.no_grad():
        for weight in reference_server.model.parameters():
            weight.mul_(1.05)  # so that there is a KL
    config = make_config(
        reference_server.url,
        task=task("math.nan if n == 5 else (n * 7 % 5) / 5"),
        loss={"kind": kind, "beta": 0.3},
        trainer={"steps": 1, "gradient_accumulation": portions},
    )
    forget(reference_server, config, tokenizer, lambda group, place: (group, place) in ((0, 0), (0, 1), (0, 2), (3, 1)))
    train(config)
    [record] = read_records(config.trainer.output / "metrics.jsonl")
    assert (record["reference/unscored"], record["reward/unmeasured"]) == (4.0, 1.0)
    assert len(calls) == 2 * portions  # once with what might be there, once with what was
    last = calls[-portions:]
    assert sum(int(data.mask.any(-1).sum()) for data, _ in last) == 11
    assert all(totals.sequences == 11 for _, totals in last)
    loss, kl = together(last, config.loss)
    if kind != "bnpo" or portions == 1:  # which averages within its portions
        # Sums of some 60 terms in fp32.
        assert record["loss"] == pytest.approx(loss, rel=1e-5, abs=1e-6)
    assert record["kl"] == pytest.approx(kl, rel=1e-5)
    assert kl > 1e-5


def test_what_was_missing_is_found_out_without_a_trace(
    make_config: MakeConfig,
    reference_server: Any,
    tokenizer: Any,
    task: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same bits as where every score had been there before the first pass."""

    def config(name: str) -> TrainConfig:
        trainer = {"steps": 2, "gradient_accumulation": 2, "iterations": 2, "save_model": True}
        return make_config(
            reference_server.url,
            task=task("(n * 7 % 5) / 5"),
            loss={"kind": "dapo"},
            collapse={"every": 1},
            trainer={**trainer, "output": str(tmp_path / name)},
        )

    forget(reference_server, config("found-out"), tokenizer, lambda group, place: group % 4 == 1 and place == 2)
    train(config("found-out"))
    honest = update.Update.__init__

    def patient(self: Any, *args: Any) -> None:
        honest(self, *args)
        for portion in self._portions:
            portion.collect()

    monkeypatch.setattr(update.Update, "__init__", patient)
    train(config("known"))

    def learned(name: str) -> list[dict[str, Any]]:
        records = read_records(tmp_path / name / "metrics.jsonl")
        return [{k: v for k, v in r.items() if not k.startswith(("time/", "reference/latency"))} for r in records]

    assert learned("found-out") == learned("known")
    ours, theirs = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("found-out", "known"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("given", ["None", "math.nan", "math.inf", "-math.inf"])
def test_one_reward_that_is_not_known_costs_one_completion(
    make_config: MakeConfig, task: Any, calls: Calls, caplog: pytest.LogCaptureFixture, given: str
) -> None:
    config = make_config(task=task(f"{given} if n == 6 else (n * 7 % 5) / 5"), loss={"beta": 0.0}, trainer={"steps": 1})
    with caplog.at_level(logging.WARNING):
        summary = train(config)
    [(data, totals)] = calls
    assert data.mask.any(-1).tolist() == [i != 6 for i in range(16)]
    assert totals.sequences == 15
    assert data.advantages[6] == 0
    rewards = torch.tensor([(n * 7 % 5) / 5 for n in (4, 5, 7)], dtype=torch.float64)
    expected = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
    torch.testing.assert_close(data.advantages[[4, 5, 7]].double(), expected, rtol=1e-6, atol=1e-6)
    [record] = read_records(config.trainer.output / "metrics.jsonl")
    assert (record["reward/unmeasured"], record["policy/skipped"]) == (1.0, 0.0)
    known = [(n * 7 % 5) / 5 for n in range(16) if n != 6]
    assert record["reward/mean"] == pytest.approx(np.mean(known))
    assert record["reward/std"] == pytest.approx(np.std(known, ddof=1))
    assert (summary["rewards_unmeasured"], summary["steps_skipped"]) == (1, 0)
    assert summary["kl_finite"] is None  # nobody was asked
    [warning] = [r.getMessage() for r in caplog.records if "reward" in r.getMessage()]
    assert str(config.task.reward) in warning
    assert "1 of 16" in warning
    assert "basic_arithmetic" in warning or "entry" in warning


def test_the_kl_in_the_reward_leaves_the_unscored_out_of_their_groups(
    make_config: MakeConfig, reference_server: Any, tokenizer: Any, task: Any, calls: Calls
) -> None:
    """A completion without a KL has a reward that the others' cannot be compared with."""
    with torch.no_grad():
        for weight in reference_server.model.parameters():
            weight.mul_(1.05)
    config = make_config(
        reference_server.url,
        task=task("(n * 7 % 5) / 5"),
        loss={"beta": 0.5, "kl_in": "reward", "kl": "k1"},
        trainer={"steps": 1, "gradient_accumulation": 2},
    )
    forget(reference_server, config, tokenizer, lambda group, place: (group, place) == (0, 3))
    train(config)
    [record] = read_records(config.trainer.output / "metrics.jsonl")
    assert len(calls) == 2  # everything is known before the first pass
    rows = [(d.old[i], d.reference[i], d.mask[i]) for d, _ in calls for i in range(8) if d.reference is not None]
    assert [bool(mask.any()) for _, _, mask in rows] == [i != 3 for i in range(16)]
    kl = [float(((old - ref) * mask).sum()) for old, ref, mask in rows]
    earned = torch.tensor([(n * 7 % 5) / 5 - 0.5 * kl[n] for n in range(3)], dtype=torch.float64)
    advantages = calls[0][0].advantages
    expected = (earned - earned.mean()) / (earned.std() + 1e-4)
    torch.testing.assert_close(advantages[:3].double(), expected, rtol=1e-4, atol=1e-4)
    assert advantages[3] == 0
    tokens = sum(int(mask.sum()) for _, _, mask in rows)
    assert record["kl"] == pytest.approx(sum(kl) / tokens, rel=1e-4)


def test_a_run_without_a_reward_trains_nothing_and_says_so(
    make_config: MakeConfig, reference_server: Any, task: Any, tmp_path: Path
) -> None:
    config = make_config(
        reference_server.url,
        task=task("None"),
        optimizer={"weight_decay": 0.5},
        trainer={"steps": 2, "save_model": True, "checkpoint_every": 1},
    )
    with pytest.raises(NothingTrained, match="32 had a reward that is None"):
        train(config)
    output = config.trainer.output
    summary = json.loads((output / "summary.json").read_text(), parse_constant=pytest.fail)
    assert (summary["steps"], summary["steps_skipped"], summary["rewards_unmeasured"]) == (2, 2, 32)
    assert [summary[name] for name in ("reward_first", "reward_last", "reward_gain", "kl_last", "kl_max")] == [None] * 5
    assert summary["kl_finite"] is None
    records = read_records(output / "metrics.jsonl")
    assert all(r["reward/mean"] is None and r["policy/skipped"] == 1.0 and "kl" not in r for r in records)
    before = load_file(Path(config.model.name) / "model.safetensors")
    after = load_file(output / "model" / "model.safetensors")
    assert all(torch.equal(after[name], before[name]) for name in after)


def test_the_command_ends_with_a_sentence_and_a_status(
    make_config: MakeConfig, reference_server: Any, task: Any, tmp_path: Path
) -> None:
    def run(body: str) -> Any:
        config = make_config(reference_server.url, task=task(body), trainer={"steps": 1})
        path = tmp_path / "run.yaml"
        path.write_text(json.dumps(config.model_dump(mode="json")))
        return CliRunner().invoke(app, ["--config", str(path), "--overwrite"])

    nothing = run("None")
    assert nothing.exit_code == 1
    assert "nothing was trained: no step changed a weight" in nothing.output
    assert "Traceback" not in nothing.output
    wrong = run("'one'")
    assert wrong.exit_code == 2
    assert "gave 'one'" in wrong.output
    fine = run("(n % 2) if n else None")
    assert fine.exit_code == 0, fine.output


@pytest.mark.parametrize("value", [1, True, 0.5, np.float32(0.5), np.int64(3), torch.tensor(0.25), Decimal("0.5")])
def test_any_number_is_a_reward(value: Any) -> None:
    assert as_reward(value, name="f", where="row 1") == float(value)


@pytest.mark.parametrize("value", ["0.5", b"1", [0.5], {"reward": 1}, torch.zeros(2), np.zeros(2), 1j, object()])
def test_what_is_no_number_is_named(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"my:judge gave .* for row 1: a reward is a number, or None"):
        as_reward(value, name="my:judge", where="row 1")


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf, np.nan, torch.tensor(math.nan)])
def test_what_is_not_known_is_nan(value: Any) -> None:
    assert math.isnan(as_reward(value, name="f", where="row 1"))


def test_an_evaluation_is_over_the_rewards_that_are_known(make_config: MakeConfig, task: Any) -> None:
    config = make_config(
        task={**task("None if n % 4 == 3 else n % 2"), "name": "basic_arithmetic"},
        loss={"beta": 0.0},
        eval={"every": 1, "prompts": 8},
        trainer={"steps": 1},
    )
    train(config)
    first, *_ = read_records(config.trainer.output / "eval.jsonl")
    assert first["eval/held_out/reward"] == pytest.approx(2 / 6)
