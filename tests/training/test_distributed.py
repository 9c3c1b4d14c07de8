"""Several processes are one run: two gloo ranks, by DDP and by FSDP2, against one process, on the same prompts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from grpo_client import Status
from grpo_training.config import ConfigError, TrainConfig
from grpo_training.distributed import World
from grpo_training.report.metrics import read_records
from grpo_training.run.loop import train
from safetensors.torch import load_file

MakeConfig = Callable[..., TrainConfig]
OnTwoRanks = Callable[..., dict[str, Any]]

KINDS = ("grpo", "bnpo", "dapo")  # normalised by sequences, by a portion's tokens, by the step's tokens


def learned(output: Path) -> list[dict[str, float]]:
    return [
        {k: v for k, v in record.items() if not k.startswith("time/") and not k.endswith("latency_s")}
        for record in read_records(output / "metrics.jsonl")
    ]


def weights(output: Path) -> dict[str, torch.Tensor]:
    [file] = (output / "model").glob("*.safetensors")
    return load_file(file)


def compare(ours: Path, theirs: Path) -> None:
    """The same run up to the order of sums: everything logged to 1e-5, and at the end the weights.

    A sampled token may fall the other way where a uniform number lies within 1e-7 of the edge between two tokens: some
    run in thirty here. From there on it is another run; the steps before must be the same ones, at least three of them.
    """
    a, b = learned(ours), learned(theirs)
    assert [r.keys() for r in a] == [r.keys() for r in b]
    same = 0
    while same < len(a) and abs(a[same]["policy/entropy"] - b[same]["policy/entropy"]) < 1e-5:
        same += 1
    assert same >= 3
    for mine, other in zip(a[:same], b[:same], strict=True):
        for figure, value in other.items():
            assert abs(mine[figure] - value) <= 1e-5 * max(abs(value), 1.0), figure
        for figure in ("reward/mean", "reward/std", "completion/tokens", "completion/ended"):
            assert mine[figure] == pytest.approx(other[figure], abs=1e-12), figure
    if same == len(a):
        mine, other = weights(ours), weights(theirs)
        for name, tensor in other.items():
            torch.testing.assert_close(mine[name], tensor, atol=1e-5, rtol=1e-4)


REWARD = """
def lower_case(answer, entry):
    return sum(c.islower() for c in answer or "") / 6
"""


def test_two_ranks_are_one_run(
    make_config: MakeConfig,
    reference_server,
    tmp_path: Path,
    on_two_ranks: OnTwoRanks,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "dense_reward.py").write_text(REWARD)  # one that differs within every group
    monkeypatch.chdir(tmp_path)

    def config(name: str, strategy: str, kind: str, **trainer: object) -> TrainConfig:
        return make_config(
            reference_server.url,
            task={"reward": "dense_reward:lower_case", "answer_pattern": None},
            loss={"kind": kind, "scale_advantages": "batch" if kind == "bnpo" else "group"},
            # A wide eps keeps Adam from turning rounding in a gradient near 0 into a whole step.
            optimizer={"weight_decay": 0.1, "eps": 1e-3, "orthograd": {"enabled": kind != "bnpo"}},
            trainer={
                "output": str(tmp_path / name),
                "save_model": True,
                "gradient_accumulation": 2,
                "iterations": 2,
                **trainer,
            },
            distributed={"strategy": strategy},
        )

    halves = {"checkpoint_every": 2}
    runs: list[dict[str, Any]] = []
    for strategy in ("ddp", "fsdp2"):
        runs += [config(f"{strategy}-{kind}", strategy, kind).model_dump(mode="json") for kind in KINDS]
        half, rest = (config(f"{strategy}-halves", strategy, "grpo", steps=n, **halves) for n in (2, 4))
        runs += [half.model_dump(mode="json"), rest.model_dump(mode="json") | {"resume": True}]
    runs.append(config("handed-over", "fsdp2", "grpo", steps=2, **halves).model_dump(mode="json"))
    listed = tmp_path / "runs.json"
    listed.write_text(json.dumps(runs))
    on_two_ranks("train_together", listed)
    # Four steps and eight runs on two ranks, each asking for its own groups, one request a portion.
    assert len(reference_server.requests) == 2 * 2 * (4 * 8 + 2)
    assert {len(r.groups) for r in reference_server.requests} == {1}

    for kind in KINDS:
        train(config(f"one-{kind}", "auto", kind))
        assert all(
            r["reward/flat_groups"] < 1 and r["policy/grad_norm"] > 0.1 for r in learned(tmp_path / f"one-{kind}")
        )
        for strategy in ("ddp", "fsdp2"):
            compare(tmp_path / f"{strategy}-{kind}", tmp_path / f"one-{kind}")
    for strategy in ("ddp", "fsdp2"):  # interrupted and resumed: the same bits
        assert learned(tmp_path / f"{strategy}-halves") == learned(tmp_path / f"{strategy}-grpo")
        whole, halved = weights(tmp_path / f"{strategy}-grpo"), weights(tmp_path / f"{strategy}-halves")
        assert all(torch.equal(whole[name], halved[name]) for name in whole)
    # Begun by two ranks with cut weights, ended by one process.
    train(config("handed-over", "auto", "grpo", **halves), resume=True)
    compare(tmp_path / "handed-over", tmp_path / "one-grpo")


def test_adapters_and_recomputed_layers_are_shared_too(
    make_config: MakeConfig,
    reference_server,
    tmp_path: Path,
    on_two_ranks: OnTwoRanks,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("peft")
    (tmp_path / "dense_reward.py").write_text(REWARD)
    monkeypatch.chdir(tmp_path)

    def config(strategy: str, steps: int = 3) -> TrainConfig:
        return make_config(
            reference_server.url,
            model={"gradient_checkpointing": True},
            task={"reward": "dense_reward:lower_case", "answer_pattern": None},
            lora={"r": 4},
            optimizer={"lr": 1e-2, "eps": 1e-3, "orthograd": {"enabled": True, "granularity": "row"}},
            trainer={"output": str(tmp_path / strategy), "save_model": True, "steps": steps, "checkpoint_every": 1},
            distributed={"strategy": strategy},
        )

    runs = [config("ddp").model_dump(mode="json"), config("fsdp2", steps=2).model_dump(mode="json")]
    runs.append(config("fsdp2").model_dump(mode="json") | {"resume": True})
    listed = tmp_path / "runs.json"
    listed.write_text(json.dumps(runs))
    on_two_ranks("train_together", listed)
    train(config("auto"))
    compare(tmp_path / "ddp", tmp_path / "auto")
    compare(tmp_path / "fsdp2", tmp_path / "auto")


PATCHY = """
def lower_case(answer, entry):
    return None if sum(map(ord, answer)) % 5 == 0 else sum(c.islower() for c in answer) / 6
"""


def test_what_is_left_out_and_what_is_uncertain_is_the_same_on_two_ranks(
    make_config: MakeConfig,
    reference_server,
    tmp_path: Path,
    on_two_ranks: OnTwoRanks,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Missing rewards and scores, one threshold of entropy and one mean of it, the share of collapsed terms."""
    (tmp_path / "patchy_reward.py").write_text(PATCHY)
    monkeypatch.chdir(tmp_path)
    honest = reference_server.score

    def forgetful(request: Any) -> Any:
        """No score for a completion by what it says: the same ones however they are asked for."""
        result = honest(request)
        completions = [c for group in request.groups for c in group.completions]
        lost = [Status.NONFINITE if int(c.sum()) % 4 == 0 else Status.OK for c in completions]
        return replace(result, status=np.array(lost, dtype=np.uint8))

    reference_server.score = forgetful

    def config(strategy: str) -> TrainConfig:
        return make_config(
            reference_server.url,
            task={"reward": "patchy_reward:lower_case", "answer_pattern": None},
            loss={"kind": "dapo", "entropy_coef": 0.05, "top_entropy_quantile": 0.6},
            optimizer={"eps": 1e-3},
            collapse={"every": 1},
            trainer={"output": str(tmp_path / strategy), "save_model": True, "gradient_accumulation": 2},
            distributed={"strategy": strategy},
        )

    listed = tmp_path / "runs.json"
    listed.write_text(json.dumps([config("ddp").model_dump(mode="json")]))
    on_two_ranks("train_together", listed)
    train(config("auto"))
    records = learned(tmp_path / "auto")
    assert all(r["reward/unmeasured"] > 0 and r["reference/unscored"] > 0 for r in records)
    compare(tmp_path / "ddp", tmp_path / "auto")


def test_what_processes_cannot_share_is_refused(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World("ddp", 0, 3, None)
    with pytest.raises(ConfigError, match="make it a multiple of 6"):
        world.groups(make_config(trainer={"gradient_accumulation": 2}))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="fsdp_version 2"):
        World.join(make_config())
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(ConfigError, match="make the two agree"):
        World.join(make_config(distributed={"strategy": "ddp"}))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ConfigError, match="DeepSpeed"):
        World.join(make_config())


def test_shares_are_whole_groups_of_each_portion(make_config: MakeConfig) -> None:
    config = make_config(rollout={"prompts_per_step": 8, "group_size": 2}, trainer={"gradient_accumulation": 2})
    shares = [World("ddp", rank, 2, None).groups(config) for rank in range(2)]
    assert [share.prompts for share in shares] == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert shares[1].rows.tolist() == [4, 5, 6, 7, 12, 13, 14, 15]


def test_two_ranks_learn_from_a_teacher_as_one_does(
    make_config: MakeConfig, reference_server, tmp_path: Path, on_two_ranks: OnTwoRanks
) -> None:
    draws = torch.Generator().manual_seed(5)
    with torch.no_grad():  # what teaches is another model than what learns
        for weight in reference_server.model.parameters():
            weight += 0.3 * weight.std() * torch.randn(weight.shape, generator=draws)

    def config(name: str, strategy: str, way: dict[str, object]) -> TrainConfig:
        return make_config(
            loss={"beta": 0.0},
            distillation={"teachers": reference_server.url, **way},
            optimizer={"eps": 1e-3},
            trainer={"output": str(tmp_path / name), "save_model": True, "gradient_accumulation": 2, "steps": 3},
            distributed={"strategy": strategy},
        )

    ways: dict[str, dict[str, object]] = {
        "forward": {"kind": "forward", "top_k": 8},
        "reverse": {"kind": "reverse", "top_k": 8},
    }
    runs = [
        config(f"{s}-{name}", s, way).model_dump(mode="json") for s in ("ddp", "fsdp2") for name, way in ways.items()
    ]
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    on_two_ranks("train_together", tmp_path / "runs.json")
    for name, way in ways.items():
        train(config(f"one-{name}", "auto", way))
        assert all(r["policy/grad_norm"] > 1e-3 for r in learned(tmp_path / f"one-{name}"))
        for strategy in ("ddp", "fsdp2"):
            compare(tmp_path / f"{strategy}-{name}", tmp_path / f"one-{name}")
