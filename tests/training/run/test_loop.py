"""Whole runs on the tiny model against a server over HTTP: the figures, resume after a kill, the server killed midway."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from grpo_client import FingerprintMismatch
from grpo_training.config import CheckpointError, ConfigError, TrainConfig
from grpo_training.report.metrics import read_records
from grpo_training.run.loop import train
from grpo_training.run.step import StepReport
from safetensors.torch import load_file

MakeConfig = Callable[..., TrainConfig]


class Killed(Exception):
    """Stands for kill -9: nothing after it runs."""


class KillAfter:
    """An observer that ends the run when a step is done, before its checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def started(self, config: TrainConfig, first_step: int, reference: str | None) -> None:
        self.first_step = first_step

    def stepped(self, step: int, report: StepReport) -> None:
        if step == self.step:
            raise Killed

    def saved(self, path: Path) -> None:
        self.path = path


def learned(output: Path) -> list[dict[str, float]]:
    """What a run computed, step by step, without what depends on the clock."""
    return [
        {k: v for k, v in record.items() if not k.startswith("time/") and k != "reference/latency_s"}
        for record in read_records(output / "metrics.jsonl")
    ]


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "model" / "model.safetensors")


def test_a_run_writes_its_story(make_config: MakeConfig, reference_server, tmp_path: Path) -> None:
    config = make_config(reference_server.url, trainer={"tensorboard": True, "save_model": True})
    summary = train(config)
    output = tmp_path / "run"
    records = learned(output)
    assert [r["step"] for r in records] == [0, 1, 2, 3]
    assert records[0]["kl"] == pytest.approx(0.0, abs=1e-9)  # the policy still is its reference
    assert records[-1]["kl"] > 1e-6
    assert all(r["policy/sampler_gap"] < 1e-4 for r in records)
    assert summary["kl_finite"]
    assert summary["steps"] == 4
    assert (output / "report.png").stat().st_size > 10_000
    page = (output / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert "step 0" in page
    assert json.loads((output / "summary.json").read_text()) == summary
    assert list((output / "tensorboard").iterdir())
    assert len(reference_server.requests) == 4


def test_beta_zero_asks_nothing(make_config: MakeConfig) -> None:
    summary = train(make_config("http://127.0.0.1:9", loss={"beta": 0.0}, trainer={"steps": 1}))
    assert summary["reference"] is None
    assert summary["steps"] == 1


@pytest.mark.parametrize("kind", ["constant", "cosine"])
def test_a_killed_run_goes_on_bit_for_bit(make_config: MakeConfig, reference_server, tmp_path: Path, kind: str) -> None:
    def config(name: str) -> TrainConfig:
        return make_config(
            reference_server.url,
            optimizer={"schedule": kind, "warmup_steps": 2, "weight_decay": 0.1},
            trainer={
                "steps": 6,
                "checkpoint_every": 2,
                "save_model": True,
                "gradient_accumulation": 2,
                "output": str(tmp_path / name),
            },
        )

    train(config("undisturbed"))
    with pytest.raises(Killed):
        train(config("killed"), observer=KillAfter(4))
    watcher = KillAfter(99)
    train(config("killed"), resume=True, observer=watcher)

    assert watcher.first_step == 4
    assert learned(tmp_path / "killed") == learned(tmp_path / "undisturbed")
    ours, theirs = weights(tmp_path / "killed"), weights(tmp_path / "undisturbed")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_resumed_run_must_be_the_same_run(make_config: MakeConfig, reference_server) -> None:
    checkpointed = {"checkpoint_every": 2, "steps": 2}
    train(make_config(reference_server.url, trainer=checkpointed))
    with pytest.raises(CheckpointError, match=r"rollout\.temperature"):
        train(make_config(reference_server.url, trainer=checkpointed, rollout={"temperature": 0.5}), resume=True)
    # Longer is allowed, and what is done is not done again.
    summary = train(make_config(reference_server.url, trainer=checkpointed | {"steps": 3}), resume=True)
    assert summary["steps"] == 3
    assert len(reference_server.requests) == 3


def test_a_run_is_not_overwritten_by_accident(make_config: MakeConfig, reference_server) -> None:
    config = make_config(reference_server.url, trainer={"steps": 1})
    train(config)
    with pytest.raises(ConfigError, match="holds a run already"):
        train(config)
    train(config, overwrite=True)


def test_a_run_that_was_killed_before_its_first_checkpoint_is_begun_again(
    make_config: MakeConfig, reference_server
) -> None:
    config = make_config(reference_server.url, trainer={"steps": 2})
    config.trainer.output.mkdir(parents=True, exist_ok=True)
    (config.trainer.output / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 9.0}\n')
    assert train(config, resume=True)["steps"] == 2
    assert "9.0" not in (config.trainer.output / "metrics.jsonl").read_text()
    with pytest.raises(ConfigError, match="holds a run already"):
        train(config, resume=True)  # it is finished, and left nothing to go on from


def test_another_reference_is_refused(make_config: MakeConfig, reference_server) -> None:
    def swap(number: int) -> bool:
        if number == 1:
            reference_server.info = reference_server.info.model_copy(update={"fingerprint": "another"})
        return True

    reference_server.before_answer = swap
    with pytest.raises(FingerprintMismatch):
        train(make_config(reference_server.url))


def test_of_several_references_the_one_that_is_named_is_asked(
    make_config: MakeConfig, reference_server, tmp_path: Path
) -> None:
    for name in (None, "judge"):
        reference_server.requests.clear()
        config = make_config(
            reference_server.url, reference={"model": name}, trainer={"steps": 1, "output": str(tmp_path / str(name))}
        )
        train(config)
        assert {request.model for request in reference_server.requests} == {name}


def test_a_resumed_run_refuses_another_reference(make_config: MakeConfig, reference_server) -> None:
    train(make_config(reference_server.url, trainer={"steps": 1, "checkpoint_every": 1}))
    reference_server.info = reference_server.info.model_copy(update={"fingerprint": "another"})
    with pytest.raises(FingerprintMismatch):
        train(make_config(reference_server.url, trainer={"steps": 2, "checkpoint_every": 1}), resume=True)


def test_the_server_may_die_in_the_middle_of_a_step(make_config: MakeConfig, reference_server, tmp_path: Path) -> None:
    train(make_config(reference_server.url, trainer={"output": str(tmp_path / "undisturbed")}))

    def die(number: int) -> bool:
        """Stop with the third run's second answer owed, and come back on the same port."""
        if number != first + 1:
            return True

        def restart() -> None:
            reference_server.stop()
            reference_server.start()

        threading.Thread(target=restart).start()
        return False

    first = len(reference_server.requests)
    reference_server.before_answer = die
    train(make_config(reference_server.url, trainer={"output": str(tmp_path / "disturbed")}))
    assert len(reference_server.requests) > first + 4  # the lost answer was asked for again
    assert learned(tmp_path / "disturbed") == learned(tmp_path / "undisturbed")


def test_portions_change_nothing_but_memory(make_config: MakeConfig, reference_server, tmp_path: Path) -> None:
    for portions in (1, 2, 4):
        trainer = {"steps": 1, "gradient_accumulation": portions, "output": str(tmp_path / str(portions))}
        train(make_config(reference_server.url, trainer=trainer))
    whole, *others = (learned(tmp_path / str(n))[0] for n in (1, 2, 4))
    for other in others:
        assert other["loss"] == pytest.approx(whole["loss"], abs=1e-6)
        assert other["policy/grad_norm"] == pytest.approx(whole["policy/grad_norm"], rel=1e-4)


def test_inner_iterations_bring_the_ratio_to_life(make_config: MakeConfig, reference_server) -> None:
    config = make_config(reference_server.url, trainer={"steps": 2, "iterations": 3})
    train(config)
    records = learned(config.trainer.output)
    assert all(r["ratio"] != 1.0 for r in records)
    assert len(reference_server.requests) == 2  # scored once a step, not once an iteration


def test_orthograd_and_stablemax_are_options(make_config: MakeConfig) -> None:
    summary = train(
        make_config(
            loss={"beta": 0.0, "normalizer": "stablemax"},
            optimizer={"orthograd": {"enabled": True, "skip_types": ["LlamaRMSNorm"]}},
            trainer={"steps": 2},
        )
    )
    assert summary["steps"] == 2
