"""Runs that learn from a teacher, over HTTP: equal models have nothing to learn, unequal ones do, and nothing wrong counts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from grpo_client import ScoreResult, Status
from grpo_training.config import CheckpointError, ConfigError, TeacherError, TrainConfig
from grpo_training.report.metrics import read_records
from grpo_training.run.loop import train
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from ..conftest import TinyReference

MakeConfig = Callable[..., TrainConfig]
WAYS: list[dict[str, Any]] = [
    {"kind": "sampled"},
    {"kind": "forward", "top_k": 8},
    {"kind": "reverse", "top_k": 8},
    {"kind": "forward", "top_k": 8, "support": "union"},
    {"kind": "reverse", "top_k": 80, "support": "union"},
    {"kind": "jsd", "beta": 0.3, "support": "sampled"},
    {"kind": "skew_forward", "top_k": 8, "support": "student"},
    {"kind": "skew_reverse", "top_k": 8, "support": "teacher"},
    {"kind": "jsd", "top_k": 8, "tail": "renormalise"},
    {"kind": "forward", "top_k": 8, "tail": "none"},
    {"kind": "forward", "top_k": 8, "temperature": 2.0},
]
NAMES = ["-".join(map(str, way.values())) for way in WAYS]


def perturbed(path: Path, scale: float, seed: int = 5) -> Any:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += scale * torch.randn(weight.shape, generator=draws) * weight.std()
    return model


@pytest.fixture
def teacher(tiny_path: Path) -> Iterator[TinyReference]:
    """Another model than the policy, not far from it."""
    server = TinyReference(perturbed(tiny_path, 0.3), "teacher")
    yield server
    server.stop()


def taught(make: MakeConfig, url: Any, way: dict[str, Any] | None = None, **sections: Any) -> TrainConfig:
    """A run whose only server is the teacher: beta is 0, and no reference is there to be asked."""
    sections = {"loss": {"beta": 0.0}} | sections
    return make(distillation={"teachers": url, **(way or {})}, **sections)


def records(config: TrainConfig) -> list[dict[str, float]]:
    return read_records(config.trainer.output / "metrics.jsonl")


@pytest.mark.parametrize("way", WAYS, ids=NAMES)
def test_a_policy_that_is_its_teacher_has_nothing_to_learn(
    make_config: MakeConfig, reference_server: TinyReference, way: dict[str, Any]
) -> None:
    config = taught(make_config, reference_server.url, way | {"starts_equal": True}, trainer={"steps": 1})
    train(config)
    [record] = records(config)
    if "temperature" in way:  # q and p are of different temperatures: there is no difference to tell of
        assert not any(name.startswith("distill/d_") for name in record)
    else:
        assert abs(record["distill/d_mean"]) < 1e-5
    if way.get("tail") != "none":  # which is no divergence: equal models are not where it is least
        assert record["policy/grad_norm"] < 1e-4
    if way["kind"] != "sampled":
        assert abs(record["distill/loss"]) < 1e-6
        assert record["distill/teacher_mass"] == pytest.approx(record["distill/student_mass"], abs=1e-5)
    assert record["teacher/unscored"] == 0


@pytest.mark.parametrize("way", WAYS, ids=NAMES)
def test_a_policy_comes_nearer_to_its_teacher(
    make_config: MakeConfig, teacher: TinyReference, way: dict[str, Any]
) -> None:
    config = taught(make_config, teacher.url, way, trainer={"steps": 12}, optimizer={"lr": 3e-3})
    train(config)
    seen = records(config)
    measured = "distill/d_mean" if way["kind"] == "sampled" else "distill/loss"
    first, last = (np.mean([r[measured] for r in part]) for part in (seen[:3], seen[-3:]))
    if way.get("tail") != "none":  # which is no divergence, and may be negative
        assert first > 0
        assert last < 0.8 * first
    assert all(math.isfinite(r["loss"]) for r in seen)
    spread = {"distill/d_p05", "distill/d_p50", "distill/d_p95", "distill/d_max"}
    assert ("temperature" in way) != (spread <= seen[0].keys())
    assert "time/teacher_wait_s" in seen[0]
    if way["kind"] != "sampled":
        assert 0 < seen[0]["distill/teacher_mass"] <= 1 + 1e-6
        assert ("distill/overlap" in seen[0]) == (way.get("support") != "sampled")


def test_the_students_best_tokens_go_out_with_the_completions(make_config: MakeConfig, teacher: TinyReference) -> None:
    config = taught(make_config, teacher.url, {"kind": "reverse", "top_k": 8}, trainer={"steps": 1})
    train(config)
    [request] = teacher.requests
    assert request.top_k == 8
    for group in request.groups:
        for ids, asked in zip(group.completions, group.token_ids or (), strict=True):
            assert asked.shape == (len(ids), 8)
            assert all(len(set(row)) == 8 for row in asked.tolist())


def test_the_task_may_be_learnt_beside_it(
    make_config: MakeConfig, teacher: TinyReference, varied_task: dict[str, object], tmp_path: Path
) -> None:
    seen = {}
    for both in (False, True):
        trainer = {"steps": 1, "output": str(tmp_path / f"both-{both}")}
        config = taught(make_config, teacher.url, {"task_reward": both}, task=varied_task, trainer=trainer)
        train(config)
        [seen[both]] = records(config)
    assert seen[True]["reward/mean"] == seen[False]["reward/mean"]
    assert seen[True]["policy/grad_norm"] != seen[False]["policy/grad_norm"]
    assert "reward/flat_groups" not in seen[False]


def test_a_reward_that_is_not_known_keeps_nothing_from_being_learnt(
    make_config: MakeConfig, teacher: TinyReference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "no_reward.py").write_text("def none(answer, entry):\n    return None\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    task = {"reward": "no_reward:none", "answer_pattern": None}
    config = taught(make_config, teacher.url, task=task, trainer={"steps": 1})
    train(config)
    [record] = records(config)
    assert record["reward/unmeasured"] == 16
    assert not record["policy/skipped"]


@pytest.mark.parametrize("way", [{"kind": "sampled"}, {"kind": "reverse", "top_k": 4}], ids=["sampled", "reverse"])
def test_what_a_teacher_could_not_score_is_left_out_and_counted(
    make_config: MakeConfig, teacher: TinyReference, monkeypatch: pytest.MonkeyPatch, way: dict[str, Any]
) -> None:
    plain = teacher.score

    def holed(request: Any) -> ScoreResult:
        result = plain(request)
        result.status[1] = Status.NONFINITE
        first = int(result.completion_lengths[0])
        for values in (result.logprobs, *(v for v in result.extras.values() if v.dtype == np.float32)):
            values[first : first + int(result.completion_lengths[1])] = np.nan
        return result

    monkeypatch.setattr(teacher, "score", holed)
    config = taught(make_config, teacher.url, way, trainer={"steps": 2, "gradient_accumulation": 2})
    train(config)
    for record in records(config):
        assert record["teacher/unscored"] == 2  # one of each portion
        assert math.isfinite(record["loss"])
        assert math.isfinite(record["policy/grad_norm"])
        assert not record["policy/skipped"]


def test_an_id_that_the_teacher_finds_impossible_is_no_reverse_kl(
    make_config: MakeConfig, teacher: TinyReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = teacher.score

    def without(request: Any) -> ScoreResult:
        result = plain(request)
        result.extras["token_logprobs"][0, 3] = -np.inf
        return result

    monkeypatch.setattr(teacher, "score", without)
    config = taught(make_config, teacher.url, {"kind": "reverse", "top_k": 4}, trainer={"steps": 1})
    train(config)
    [record] = records(config)
    assert record["teacher/unscored"] == 1
    assert math.isfinite(record["loss"])


def shifted(result: ScoreResult) -> ScoreResult:
    extras = {name: np.roll(values, 1, axis=0) for name, values in result.extras.items()}
    return replace(result, logprobs=np.roll(result.logprobs, 1), extras=extras)


@pytest.mark.parametrize("way", [{"kind": "sampled"}, {"kind": "forward", "top_k": 8}], ids=["sampled", "forward"])
@pytest.mark.parametrize("wrong", ["shift", "temperature", "weights"])
def test_a_start_that_is_not_equal_ends_the_run_before_it_begins(
    make_config: MakeConfig,
    reference_server: TinyReference,
    teacher: TinyReference,
    monkeypatch: pytest.MonkeyPatch,
    way: dict[str, Any],
    wrong: str,
) -> None:
    server = teacher if wrong == "weights" else reference_server
    plain, rows = server.score, server._logprobs
    if wrong == "shift":
        monkeypatch.setattr(server, "score", lambda request: shifted(plain(request)))
    if wrong == "temperature":
        monkeypatch.setattr(server, "_logprobs", lambda p, c, t: rows(p, c, 1.1 * t))
    config = taught(make_config, server.url, way | {"starts_equal": True})
    with pytest.raises(ConfigError, match="starts_equal: teacher default"):
        train(config)
    assert not (config.trainer.output / "metrics.jsonl").exists()


def test_an_answer_of_another_temperature_ends_the_run(
    make_config: MakeConfig, teacher: TinyReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = teacher.score
    monkeypatch.setattr(
        teacher, "score", lambda request: replace(plain(request), temperature=np.full(4, 0.5, dtype=np.float32))
    )
    with pytest.raises(TeacherError, match=r"teacher default .*temperature"):
        train(taught(make_config, teacher.url))


def test_a_smaller_vocabulary_is_refused_with_the_teachers_name(
    make_config: MakeConfig, teacher: TinyReference
) -> None:
    teacher.info = teacher.info.model_copy(update={"vocab_size": 40})
    with pytest.raises(ConfigError, match="the teacher math has a vocabulary of 40"):
        train(taught(make_config, {"math": teacher.url}))


@pytest.mark.parametrize("swapped", [0, 1, 40])
def test_another_tokenizer_of_the_same_size_is_refused(
    make_config: MakeConfig, teacher: TinyReference, tokenizer: PreTrainedTokenizerFast, swapped: int
) -> None:
    """One pair of tokens trades places: the shapes, the ids and the losses are all as they should be."""
    vocab = tokenizer.get_vocab()
    names = sorted(vocab, key=vocab.__getitem__)
    a, b = names[swapped + 6], names[swapped + 20]
    vocab[a], vocab[b] = vocab[b], vocab[a]
    teacher.tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocab, unk_token="<unk>")))
    with pytest.raises(ConfigError, match=rf"teacher math .* another tokenizer .* id {swapped + 6} ") as raised:
        train(taught(make_config, {"math": teacher.url}))
    assert f"of {len(vocab)} and {len(vocab)}" in str(raised.value)


def test_the_same_tokenizer_is_learnt_from(
    make_config: MakeConfig,
    teacher: TinyReference,
    tokenizer: PreTrainedTokenizerFast,
    caplog: pytest.LogCaptureFixture,
) -> None:
    teacher.tokenizer = tokenizer
    train(taught(make_config, teacher.url, trainer={"steps": 1}))
    assert "tokenizer" not in caplog.text
    teacher.tokenizer = None
    train(taught(make_config, teacher.url, trainer={"steps": 1}), overwrite=True)
    assert "teacher default does not tell its tokenizer" in caplog.text


def test_each_row_has_its_teacher(
    make_config: MakeConfig, teacher: TinyReference, reference_server: TinyReference, tmp_path: Path
) -> None:
    rows = [{"question": f"{n}+1", "answer": n + 1, "teacher": ("near", "far")[n % 2]} for n in range(8)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    task = {"name": None, "kwargs": {}, "file": str(file), "shuffle": False}
    names = {"near": reference_server.url, "far": teacher.url}
    config = taught(make_config, names, {"kind": "forward", "top_k": 8}, task=task, trainer={"steps": 1})
    train(config)
    [record] = records(config)
    assert abs(record["distill/near/d_mean"]) < 1e-5
    assert record["distill/far/d_mean"] > 0.01
    assert [len(server.requests[0].groups) for server in (reference_server, teacher)] == [2, 2]

    file.write_text("\n".join(map(json.dumps, [*rows, {"question": "1", "answer": 1, "teacher": "further"}])))
    with pytest.raises(ConfigError, match=r"line 9: teacher is 'further', .* has far, near"):
        train(config, overwrite=True)
    file.write_text("\n".join(map(json.dumps, [*rows, {"question": "1", "answer": 1}])))
    with pytest.raises(ConfigError, match="line 9 has no column teacher"):
        train(config, overwrite=True)


def test_two_teachers_give_the_bits_of_each_alone(
    make_config: MakeConfig, teacher: TinyReference, tmp_path: Path
) -> None:
    """Both names are one server's: the run is that of one teacher, to the bit."""
    rows = [{"question": f"{n}+1", "answer": n + 1, "teacher": "ab"[n % 2]} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {"name": None, "kwargs": {}, "file": str(tmp_path / "rows.jsonl"), "shuffle": False}
    learned = []
    for place, names in enumerate((teacher.url, {"a": teacher.url, "b": teacher.url})):
        trainer = {"steps": 3, "save_model": True, "output": str(tmp_path / f"run{place}")}
        config = taught(make_config, names, {"kind": "reverse", "top_k": 8}, task=task, trainer=trainer)
        train(config)
        learned.append(load_file(config.trainer.output / "model" / "model.safetensors"))
    assert all(torch.equal(learned[0][name], learned[1][name]) for name in learned[0])


def test_a_resumed_run_is_the_undisturbed_one(make_config: MakeConfig, teacher: TinyReference, tmp_path: Path) -> None:
    def run(name: str, steps: int, **more: Any) -> list[dict[str, float]]:
        trainer = {"steps": steps, "checkpoint_every": 2, "output": str(tmp_path / name)}
        config = taught(make_config, teacher.url, {"kind": "forward", "top_k": 8}, trainer=trainer)
        train(config, **more)
        return [{k: v for k, v in r.items() if "time/" not in k and "latency" not in k} for r in records(config)]

    whole = run("whole", 4)
    run("cut", 2)
    assert run("cut", 4, resume=True) == whole
    teacher.info = teacher.info.model_copy(update={"fingerprint": "another"})
    with pytest.raises(TeacherError, match="teacher default"):
        run("cut", 6, resume=True)
    config = taught(make_config, teacher.url, {"kind": "jsd"}, trainer={"output": str(tmp_path / "cut"), "steps": 6})
    with pytest.raises(CheckpointError, match=r"distillation\.kind"):
        train(config, resume=True)


def test_portions_and_minibatches_are_one_mean_over_the_updates_tokens(
    make_config: MakeConfig, teacher: TinyReference, tmp_path: Path
) -> None:
    weights = []
    for portions in (1, 2, 4):
        trainer = {
            "steps": 1,
            "gradient_accumulation": portions,
            "save_model": True,
            "output": str(tmp_path / f"{portions}"),
        }
        config = taught(make_config, teacher.url, {"kind": "forward", "top_k": 8}, trainer=trainer)
        train(config)
        weights.append(load_file(config.trainer.output / "model" / "model.safetensors"))
    for other in weights[1:]:
        for name, weight in weights[0].items():
            torch.testing.assert_close(other[name], weight, atol=2e-5, rtol=1e-4)
