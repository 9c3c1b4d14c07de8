"""Settings of the objective in whole runs on the tiny model: each leaves the trace in the metrics that it must."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from grpo_training.config import TrainConfig
from grpo_training.report.metrics import read_records
from grpo_training.run.loop import train
from transformers import AutoModelForCausalLM, AutoTokenizer

MakeConfig = Callable[..., TrainConfig]


@pytest.fixture
def make_config(make_config: MakeConfig, varied_task: dict[str, Any]) -> MakeConfig:
    """Runs whose groups are not flat, so that every step has a gradient."""
    return lambda *args, **sections: make_config(*args, **{"task": varied_task} | sections)


def records(config: TrainConfig) -> list[dict[str, float]]:
    train(config, overwrite=True)
    return read_records(config.trainer.output / "metrics.jsonl")


def first_step(make: MakeConfig, **loss: Any) -> dict[str, float]:
    return records(make(loss={"beta": 0.0, **loss}, trainer={"steps": 1}))[0]


def test_the_entropy_bonus(make_config: MakeConfig) -> None:
    plain, bonus = first_step(make_config), first_step(make_config, entropy_coef=0.5)
    # fp32: the sampler's entropy and the policy's agree to some 1e-5 of nats.
    assert plain["loss"] - bonus["loss"] == pytest.approx(0.5 * plain["policy/entropy"], abs=1e-4)
    assert bonus["policy/grad_norm"] != plain["policy/grad_norm"]


def test_the_entropy_mask(make_config: MakeConfig) -> None:
    figures = first_step(make_config, top_entropy_quantile=0.25)
    assert figures["policy/trained_share"] == pytest.approx(0.25, abs=1 / figures["completion/tokens"])
    assert figures["policy/grad_norm"] != first_step(make_config)["policy/grad_norm"]


def test_the_correction_is_nothing_where_the_policy_sampled(make_config: MakeConfig) -> None:
    plain = first_step(make_config)
    assert "rollout/weight" not in plain
    corrected = first_step(make_config, rollout_correction="sequence_truncate")
    assert corrected["rollout/weight"] == pytest.approx(1.0, abs=1e-3)
    assert corrected["rollout/left_out"] == 0
    assert corrected["policy/grad_norm"] == pytest.approx(plain["policy/grad_norm"], rel=1e-3)


def test_the_kl_in_the_reward(make_config: MakeConfig, reference_server) -> None:
    loss = {"kl": "k1", "beta": 0.3}
    in_reward = records(make_config(reference_server.url, loss=loss | {"kl_in": "reward"}, trainer={"steps": 3}))
    assert abs(in_reward[0]["kl"]) < 1e-5  # the policy still is its reference
    for r in in_reward:
        a_completion = r["kl"] * r["completion/length"]
        assert r["reward/less_kl"] == pytest.approx(r["reward/mean"] - 0.3 * a_completion, abs=1e-6)
    assert abs(in_reward[2]["kl"]) > 1e-4
    in_loss = records(make_config(reference_server.url, loss=loss, trainer={"steps": 3}))
    assert "reward/less_kl" not in in_loss[0]
    assert in_loss[2]["loss"] != in_reward[2]["loss"]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_the_scale_of_advantages(make_config: MakeConfig, scale: str) -> None:
    """With one token a completion and dapo the gradient is linear in the advantages, so their scale is seen in it."""
    make = {
        "rollout": {"max_new_tokens": 1},
        "trainer": {"steps": 1},
        "optimizer": {"max_grad_norm": None},
    }
    whole = records(make_config(loss={"beta": 0.0, "kind": "dapo", "scale_advantages": "none"}, **make))[0]
    scaled = records(make_config(loss={"beta": 0.0, "kind": "dapo", "scale_advantages": scale}, **make))[0]
    ratio = scaled["policy/grad_norm"] / whole["policy/grad_norm"]
    if scale == "batch":
        assert ratio == pytest.approx(1 / (scaled["reward/std"] + 1e-4), rel=1e-4)
    else:
        assert (abs(ratio - 1) < 1e-6) is (scale == "none")


def test_collapse_is_measured_at_its_interval(make_config: MakeConfig, tiny_path: Path) -> None:
    found = records(make_config(loss={"beta": 0.0}, collapse={"every": 2}, trainer={"steps": 4}))
    names = {f"collapse/{name}" for name in ("zero_share", "max_logit", "cosine", "norm_growth")}
    assert [names <= r.keys() for r in found] == [False, True, False, True]
    assert all(-1 <= found[i]["collapse/cosine"] <= 1 for i in (1, 3))
    assert found[1]["collapse/zero_share"] == 0
    assert 1 < found[1]["collapse/max_logit"] < 100


def test_it_changes_nothing_to_look(make_config: MakeConfig) -> None:
    looked = records(make_config(loss={"beta": 0.0}, collapse={"every": 1}, trainer={"steps": 2}))[1]
    plain = records(make_config(loss={"beta": 0.0}, trainer={"steps": 2}))[1]
    assert {k: looked[k] for k in ("loss", "policy/grad_norm")} == {k: plain[k] for k in ("loss", "policy/grad_norm")}


def test_collapse_is_warned_of_once(
    make_config: MakeConfig, tiny_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sure = AutoModelForCausalLM.from_pretrained(tiny_path)
    with torch.no_grad():
        sure.model.norm.weight *= 1e4  # logits so far apart that the likeliest token has all the probability
    sure.save_pretrained(tmp_path / "sure")
    AutoTokenizer.from_pretrained(tiny_path).save_pretrained(tmp_path / "sure")
    config = make_config(
        model={"name": str(tmp_path / "sure")}, loss={"beta": 0.0}, collapse={"every": 1}, trainer={"steps": 2}
    )
    with caplog.at_level(logging.WARNING, logger="grpo_training.run.watch"):
        found = records(config)
    assert found[0]["collapse/zero_share"] > 0.9
    assert found[0]["collapse/max_logit"] > 1000
    [warning] = [r.message for r in caplog.records if r.name == "grpo_training.run.watch"]
    assert "loss.normalizer=stablemax" in warning
