"""Groups that teach nothing, completions that were cut, and updates on parts of a batch."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from grpo_training.config import TrainConfig
from grpo_training.losses import Totals, overlong_penalty
from grpo_training.losses.objective import PortionData, portion_loss
from grpo_training.report.metrics import read_records
from grpo_training.rollouts.rollout import Rollout
from grpo_training.run import update
from grpo_training.run.endings import Endings
from grpo_training.run.groups import without_signal
from grpo_training.run.loop import train
from pydantic import ValidationError

MakeConfig = Callable[..., TrainConfig]
Calls = list[tuple[PortionData, Totals]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What every pass handed to the loss."""
    seen: Calls = []

    def recording(data: PortionData, options: Any, totals: Totals, **more: Any) -> Any:
        seen.append((replace(data, logprobs=data.logprobs.detach().clone()), totals))
        return portion_loss(data, options, totals, **more)

    monkeypatch.setattr(update, "portion_loss", recording)
    return seen


@pytest.fixture
def rare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Fields of `task`: a reward that few completions earn, so that most groups are flat."""
    (tmp_path / "rare_reward.py").write_text(
        "def rare(answer, entry):\n    return float(sum(map(ord, answer)) % 11 == 0)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return {"reward": "rare_reward:rare", "answer_pattern": None}


def records(config: TrainConfig) -> list[dict[str, Any]]:
    told = read_records(config.trainer.output / "metrics.jsonl")
    return [{k: v for k, v in r.items() if not k.startswith("time/") and k != "reference/latency_s"} for r in told]


def test_groups_without_signal() -> None:
    nan = math.nan
    rewards = torch.tensor([1, 1, 0, 1, nan, nan, nan, 1, 0, nan, 1, 1.0], dtype=torch.float64)
    assert without_signal(rewards, 2) == [0, 2, 3, 4, 5]
    assert without_signal(rewards, 4) == [1]


def test_sampling_anew_raises_the_share_of_groups_with_signal(
    make_config: MakeConfig, reference_server: Any, rare: dict[str, object], tmp_path: Path
) -> None:
    def run(resample: int, name: str) -> list[dict[str, Any]]:
        trainer = {"steps": 3, "output": str(tmp_path / name)}
        config = make_config(reference_server.url, task=rare, rollout={"resample": resample}, trainer=trainer)
        train(config)
        return records(config)

    plain, anew = run(0, "plain"), run(4, "anew")
    for record in anew:
        assert record["rollout/signal"] == pytest.approx(1 - record["reward/flat_groups"])
        assert record["rollout/signal"] >= record["rollout/signal_first"]
        assert record["rollout/resampled"] <= 4 * 4
    assert anew[0]["rollout/signal_first"] == pytest.approx(1 - plain[0]["reward/flat_groups"])
    before = sum(r["rollout/signal_first"] for r in anew)
    after = sum(r["rollout/signal"] for r in anew)
    assert after > before + 0.5
    assert "rollout/resampled" not in plain[0]
    assert run(4, "again") == anew  # what is sampled anew follows from the seed
    sent = reference_server.requests[3]  # only what is trained on is scored
    assert len(sent.groups) == 4


def test_groups_are_put_in_place(ragged: Rollout) -> None:
    narrow = replace(ragged, ids=ragged.ids[:, :4], mask=ragged.mask[:, :4] & True, logprobs=ragged.logprobs[:, :4])
    narrow = replace(narrow, entropy=None)
    mixed = narrow.replaced([1], replace(ragged, prompts=[[1]] * 2).chosen([0]))
    assert mixed.prompts == [ragged.prompts[0], [1]]
    assert mixed.completions()[0] == narrow.completions()[0]
    assert mixed.completions()[1] == ragged.completions()[0]
    assert mixed.entropy is None
    assert ragged.chosen([1, 0]).completions() == ragged.completions()[::-1]


def test_the_penalty_of_a_long_completion() -> None:
    """Eq. 13 of the paper: nothing up to limit - buffer, all of it at the limit, linear between."""
    lengths = torch.tensor([0, 5, 6, 7, 8, 9, 10])
    assert overlong_penalty(lengths, 10, 4).tolist() == [0, 0, 0, -0.25, -0.5, -0.75, -1]
    assert not overlong_penalty(lengths, 10, 0).any()


def test_a_run_with_the_penalty(make_config: MakeConfig, varied_task: dict[str, object], calls: Calls) -> None:
    loss = {"beta": 0.0, "overlong_buffer": 4, "overlong_penalty": 0.5, "scale_advantages": "none"}
    config = make_config(task=varied_task, loss=loss, trainer={"steps": 1})
    train(config)
    [record] = records(config)
    [(data, _)] = calls
    penalty = 0.5 * overlong_penalty(data.mask.sum(-1), 6, 4)
    assert record["reward/shaped"] == pytest.approx(record["reward/mean"] + float(penalty.mean()))
    assert float(penalty.min()) == -0.5
    with pytest.raises(ValidationError, match="longer than a completion can be"):
        make_config(loss={"overlong_buffer": 7})


@pytest.mark.parametrize("kind", ["grpo", "dapo"])
def test_no_token_of_a_truncated_completion_is_trained_on(
    make_config: MakeConfig, varied_task: dict[str, object], calls: Calls, kind: str
) -> None:
    config = make_config(
        task=varied_task,
        loss={"beta": 0.0, "mask_truncated": True, "kind": kind},
        rollout={"stop": list("aeiou 0123456789AEIOU")},
        trainer={"steps": 1},
    )
    train(config)
    [(data, totals)] = calls
    [record] = records(config)
    trained = data.mask.any(-1)
    assert float(trained.double().mean()) == record["completion/ended"]
    assert 0 < int(trained.sum()) < 16
    assert totals.sequences == 16  # as in TRL: the cut ones count among the sequences
    assert totals.tokens == int(data.mask.sum()) < record["completion/tokens"]
    assert data.advantages[~trained].any()  # their rewards count in their groups


def test_a_warning_where_nothing_ends(caplog: pytest.LogCaptureFixture) -> None:
    endings = Endings(16)
    with caplog.at_level(logging.WARNING):
        for step, ended in enumerate([0.5, 0.0, 0.0, 0.25, 0.0]):
            endings.saw(step, ended)
    assert [message.split(":")[0] for message in caplog.messages] == ["step 2", "step 5"]
    assert "all were cut at rollout.max_new_tokens=16" in caplog.messages[0]


def test_mini_batches_are_updates_in_turn(
    make_config: MakeConfig, reference_server: Any, varied_task: dict[str, object], calls: Calls
) -> None:
    trainer = {"steps": 1, "minibatches": 2, "gradient_accumulation": 2, "iterations": 2}
    config = make_config(reference_server.url, task=varied_task, trainer=trainer, optimizer={"lr": 1e-2})
    train(config)
    assert len(calls) == 8  # two passes over two batches of two portions
    assert [totals.sequences for _, totals in calls] == [8] * 8  # of the update, not of the step

    def ratio(i: int) -> float:
        return float(((calls[i][0].logprobs - calls[i][0].old) * calls[i][0].mask).abs().max())

    assert max(ratio(0), ratio(1)) < 1e-4  # the policy that sampled
    assert min(ratio(i) for i in range(2, 8)) > 1e-3  # from the second update on, another
    for i in range(4):
        assert torch.equal(calls[i][0].old, calls[i + 4][0].old)
    [record] = records(config)
    assert record["policy/skipped"] == 0
    assert math.isfinite(record["loss"])
    with pytest.raises(ValidationError, match=r"trainer\.minibatches=3 must divide"):
        make_config(trainer={"minibatches": 3})
