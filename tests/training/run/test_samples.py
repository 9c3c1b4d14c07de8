"""What a run leaves of its groups: every record can be checked, and its figures are those that were trained with."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grpo_client.findings import Verdict, check, read_samples
from grpo_training.config import TrainConfig
from grpo_training.report.metrics import read_records
from grpo_training.run import samples as samples_module
from grpo_training.run.findings import RunFindings
from grpo_training.run.loop import train
from grpo_training.run.samples import Sample

MakeConfig = Callable[..., TrainConfig]


def run(make_config: MakeConfig, url: str, tmp_path: Path, **trainer: Any) -> list[dict[str, Any]]:
    train(make_config(url, trainer={"save_model": False, "tensorboard": False, **trainer}))
    return read_records(tmp_path / "run" / "samples.jsonl")


def test_a_record_holds_all_that_a_check_reads(make_config: MakeConfig, reference_server, tmp_path: Path) -> None:
    records = run(make_config, reference_server.url, tmp_path)
    config = make_config(reference_server.url)
    assert [r["step"] for r in records] == list(range(config.trainer.steps))
    for r in records:
        of = config.rollout.group_size
        assert len(r["completion_ids"]) == len(r["ended"]) == len(r["advantage"]) == len(r["rewards"]) == of
        for name in ("policy_logprobs", "ref_logprobs", "entropy"):
            assert [len(row) for row in r[name]] == [len(ids) for ids in r["completion_ids"]]
        assert r["temperature"] == config.rollout.temperature
        assert r["fingerprint"]
        assert "sampler_logprobs" not in r
        # The end token stays where a completion ended by itself.
        for ids, ended in zip(r["completion_ids"], r["ended"], strict=True):
            assert not ended or ids[-1] in r["end_ids"] or "stop" in r
    first = records[0]
    gap = np.concatenate(first["policy_logprobs"]) - np.concatenate(first["ref_logprobs"])
    assert np.abs(gap).max() < 1e-4  # before the first update policy and reference are one model
    assert abs(sum(first["advantage"])) < 1e-5


def test_the_file_can_be_checked(make_config: MakeConfig, reference_server, tmp_path: Path) -> None:
    run(make_config, reference_server.url, tmp_path, samples="all")
    samples = read_samples(tmp_path / "run" / "samples.jsonl")
    config = make_config(reference_server.url)
    assert len(samples.records) == config.trainer.steps * config.rollout.prompts_per_step
    assert not [f for f in check(samples) if f.verdict is Verdict.CHECK]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["findings"]["not_the_sampler"] in (
        "passed",
        "needs_data",
    )


def test_text_alone(make_config: MakeConfig, reference_server, tmp_path: Path) -> None:
    records = run(make_config, reference_server.url, tmp_path, samples="text")
    assert set(records[0]) == {"step", "prompt", "completions", "rewards"}


def test_a_long_group_leaves_its_text(
    make_config: MakeConfig, reference_server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples_module, "MOST_TOKENS", 1)
    assert "completion_ids" not in run(make_config, reference_server.url, tmp_path)[0]


def test_figures_are_the_shortest_of_their_float32() -> None:
    values = np.random.default_rng(0).normal(size=200).astype(np.float32)
    short = samples_module._short(values)
    assert np.array_equal(np.array(short, dtype=np.float32), values)
    assert max(len(repr(x)) for x in short) <= 14


def test_a_sick_run_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    watch, rng = RunFindings(), np.random.default_rng(0)
    with caplog.at_level(logging.WARNING):
        for step in range(40):
            r = -rng.exponential(2, size=(8, 10))
            tokens = {
                "prompt_ids": [1],
                "completion_ids": rng.integers(3, 90, size=(8, 10)).tolist(),
                "ref_logprobs": r.tolist(),
                "policy_logprobs": np.roll(r, 1, axis=1).tolist(),
            }
            watch.write(step, {"kl": 0.1}, [Sample("p", [""] * 8, [0.0] * 8, tokens)])
    told = [m for m in caplog.messages if "one token late" in m]
    assert len(told) == 1
    assert told[0].startswith("after step 4, check: ")  # 80 tokens a step: the first check with 200 of them
