"""Runs that learn from files which `grpo-client score` has written: what they hold is learnt as if the teacher were there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from grpo_client import TokenizerIdentity
from grpo_client.cli import app
from grpo_training.config import CheckpointError, ConfigError, TrainConfig
from grpo_training.report.metrics import read_records
from grpo_training.rollouts import target_files
from grpo_training.run.loop import train
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from ..conftest import TinyReference

MakeConfig = Callable[..., TrainConfig]
Score = Callable[..., Path]
K = 8


@pytest.fixture
def teacher(tiny_path: Path) -> Iterator[TinyReference]:
    """Another model than the policy, not far from it."""
    model = AutoModelForCausalLM.from_pretrained(tiny_path, dtype=torch.float32).eval()
    draws = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=draws) * weight.std()
    server = TinyReference(model, "teacher")
    yield server
    server.stop()


@pytest.fixture
def lines() -> list[dict[str, Any]]:
    """Sixteen completions of one to six tokens."""
    draws = np.random.default_rng(0)
    return [
        {"prompt": draws.integers(3, 60, 5).tolist(), "completions": [draws.integers(3, 60, 1 + n % 6).tolist()]}
        for n in range(16)
    ]


@pytest.fixture
def score(teacher: TinyReference, lines: list[dict[str, Any]], tmp_path: Path) -> Score:
    """What `grpo-client score` makes of lines of rollouts."""

    def write(*more: str, name: str = "targets", of: list[dict[str, Any]] | None = None, k: int = K) -> Path:
        source = tmp_path / f"{name}.jsonl"
        source.write_text("".join(json.dumps(line) + "\n" for line in (lines if of is None else of)))
        asked = ["score", "-u", teacher.url, "-i", str(source), "-o", str(tmp_path / name), "--top-k", str(k)]
        formats = [] if "--format" in more else ["--format", "parquet"]
        done = CliRunner().invoke(app, [*asked, *formats, *more])
        assert done.exit_code == 0, done.output
        return tmp_path / name

    return write


def offline(make: MakeConfig, path: Path, way: dict[str, Any] | None = None, **sections: Any) -> TrainConfig:
    options = {"targets": str(path), "kind": "forward", "top_k": K, **(way or {})}
    return make(distillation=options, **({"loss": {"beta": 0.0}} | sections))


def records(config: TrainConfig) -> list[dict[str, float]]:
    return read_records(config.trainer.output / "metrics.jsonl")


WAYS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"kind": "forward"}, ("--tail",)),
    ({"kind": "forward"}, ("--tail", "--format", "arrow")),
    ({"kind": "forward", "temperature": 2.0}, ("--tail", "--temperature", "2")),
    ({"kind": "forward", "tail": "none"}, ()),
    ({"kind": "jsd", "beta": 0.3, "tail": "renormalise"}, ()),
    ({"kind": "skew_forward"}, ("--tail",)),
    ({"kind": "reverse", "support": "teacher"}, ("--tail",)),
]


@pytest.mark.parametrize(
    ("way", "scored"), WAYS, ids=["-".join(map(str, way.values())) + "".join(s) for way, s in WAYS]
)
@pytest.mark.parametrize("stored", [K, 20])
def test_the_first_loss_is_the_one_with_the_teacher_at_hand(
    make_config: MakeConfig,
    teacher: TinyReference,
    score: Score,
    tmp_path: Path,
    way: dict[str, Any],
    scored: tuple[str, ...],
    stored: int,
) -> None:
    """On the very sequences that an online run has sampled; with more ids in the files than are asked for, too."""
    asked = {"distillation": {"teachers": teacher.url, "top_k": K, **way}, "loss": {"beta": 0.0}}
    trainer = {"steps": 1, "samples": "all", "output": str(tmp_path / "online")}
    online = make_config(**asked, trainer=trainer)
    train(online)
    groups = [json.loads(line) for line in (tmp_path / "online" / "samples.jsonl").read_text().splitlines()]
    rows = [{"prompt": group["prompt_ids"], "completions": group["completion_ids"]} for group in groups]
    path = score(*scored, "--rows", "4", of=rows, k=stored)
    rollout = {"prompts_per_step": 16, "max_new_tokens": 6}
    config = offline(make_config, path, way, rollout=rollout, trainer={"steps": 1, "gradient_accumulation": 2})
    teacher.stop()
    train(config)
    [here], [there] = records(config), records(online)
    for name in ("distill/loss", "distill/teacher_mass", "distill/student_mass", "distill/tail"):
        assert here[name] == pytest.approx(there[name], abs=1e-6), name
    assert here["policy/grad_norm"] == pytest.approx(there["policy/grad_norm"], rel=1e-4)
    assert here["completion/tokens"] == there["completion/tokens"]
    assert (here["teacher/unscored"], here["targets/left_out"], here["targets/epoch"]) == (0, 0, 1)


def test_a_policy_comes_nearer_to_what_the_files_hold(make_config: MakeConfig, score: Score) -> None:
    config = offline(make_config, score("--tail"), trainer={"steps": 12}, optimizer={"lr": 3e-3})
    train(config)
    losses = [record["distill/loss"] for record in records(config)]
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    summary = json.loads((config.trainer.output / "summary.json").read_text())
    assert summary["distill_loss_last"] < summary["distill_loss_first"]
    assert summary["steps_skipped"] == 0


def test_axolotls_columns_are_read_as_well(make_config: MakeConfig, score: Score) -> None:
    losses = []
    for format in ("parquet", "axolotl"):
        config = offline(make_config, score("--tail", "--format", format, name=format), trainer={"steps": 1})
        train(config, overwrite=True)
        losses.append(records(config)[0]["distill/loss"])
    assert losses[0] == losses[1]


def test_the_reference_is_asked_beside_it(
    make_config: MakeConfig, score: Score, reference_server: TinyReference
) -> None:
    path = score("--tail")
    sections = {"loss": {"beta": 0.1}, "reference": {"urls": [reference_server.url]}, "trainer": {"steps": 2}}
    config = offline(make_config, path, **sections)
    train(config)
    first, second = records(config)
    assert abs(first["kl"]) < 1e-6
    assert second["kl"] > 0


def test_rows_without_a_score_are_left_out_and_counted(
    make_config: MakeConfig, score: Score, caplog: pytest.LogCaptureFixture
) -> None:
    path = score("--tail", "--rows", "100")
    file = path / "part-00000.parquet"
    table = pq.read_table(file)
    status = pa.array(["nonfinite" if n % 4 == 0 else "ok" for n in range(16)])
    place = table.schema.get_field_index("status")
    pq.write_table(table.set_column(place, "status", status), file)
    config = offline(make_config, path, rollout={"prompts_per_step": 12}, trainer={"steps": 1})
    train(config)
    [record] = records(config)
    assert record["targets/left_out"] == 4
    assert record["targets/epoch"] == 1
    assert record["completion/tokens"] == sum(1 + n % 6 for n in range(16) if n % 4)
    assert "4 rows are left out, 12 are trained on" in caplog.text


def test_a_resumed_run_goes_on_at_the_row_where_it_stopped(
    make_config: MakeConfig, score: Score, tmp_path: Path
) -> None:
    path = score("--tail", "--rows", "5")

    def run(name: str, steps: int, **more: Any) -> list[dict[str, float]]:
        trainer = {"steps": steps, "checkpoint_every": 2, "output": str(tmp_path / name)}
        config = offline(make_config, path, trainer=trainer, rollout={"prompts_per_step": 6})
        train(config, **more)
        return [{k: v for k, v in r.items() if "time/" not in k} for r in records(config)]

    whole = run("whole", 6)  # 36 rows: more than two passes
    run("cut", 2)
    assert run("cut", 6, resume=True) == whole
    assert len({record["distill/loss"] for record in whole}) == 6
    score("--tail", "--overwrite", of=[{"prompt": [5], "completions": [[6, 7]]}])
    with pytest.raises(CheckpointError, match=r"distillation\.targets"):
        run("cut", 8, resume=True)


@pytest.mark.parametrize(
    ("way", "scored", "sections", "says"),
    [
        ({"top_k": 9}, ("--tail",), {}, "holds 8 ids of each position, and distillation.top_k is 9: set top_k=8"),
        ({}, (), {}, "tail=bucket needs: score with --tail"),
        (
            {},
            ("--tail", "--temperature", "2"),
            {},
            "temperature 2, and the run is of 1, .* set distillation.temperature=2",
        ),
        ({}, ("--tail", "--temperature", "1.0000001"), {}, "temperature 1.0000001, and the run is of 1,"),
        ({"temperature": 0.7}, ("--tail",), {}, "temperature 1, and the run is of 0.7"),
        ({}, ("--tail",), {"loss": {"beta": 0.0, "normalizer": "stablemax"}}, "score it with --normalizer stablemax"),
    ],
)
def test_what_the_files_cannot_give_is_refused_by_name(
    make_config: MakeConfig, score: Score, way: dict[str, Any], scored: tuple[str, ...], sections: Any, says: str
) -> None:
    config = offline(make_config, score(*scored), way, **sections)
    with pytest.raises(ConfigError, match=f"distillation.targets: .*{says}"):
        train(config)
    assert not (config.trainer.output / "metrics.jsonl").exists()


def test_rows_of_several_temperatures_are_refused(
    make_config: MakeConfig, score: Score, lines: list[dict[str, Any]]
) -> None:
    lines[3]["temperature"] = 0.5
    with pytest.raises(ConfigError, match=r"temperature 0\.5 and 1, .* score them at one temperature"):
        train(offline(make_config, score("--tail")))


def test_targets_of_another_teacher_are_not_mixed_in(
    make_config: MakeConfig, score: Score, teacher: TinyReference
) -> None:
    path = score("--tail")
    teacher.info = teacher.info.model_copy(update={"fingerprint": "another"})
    (score("--tail", name="more") / "part-00000.parquet").rename(path / "part-00001.parquet")
    with pytest.raises(ConfigError, match=r"part-00001.parquet has fingerprint another"):
        train(offline(make_config, path))


def test_the_tokenizer_must_be_the_policys(
    make_config: MakeConfig,
    score: Score,
    teacher: TinyReference,
    tokenizer: PreTrainedTokenizerFast,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def run(**update: Any) -> None:
        teacher.info = teacher.info.model_copy(update=update)
        train(offline(make_config, score("--tail", "--overwrite"), trainer={"steps": 1}), overwrite=True)

    mine = TokenizerIdentity.of(tokenizer)
    run(tokenizer_fingerprint=mine.fingerprint, tokens=mine.tokens)
    assert "tokenizer" not in caplog.text
    with pytest.raises(ConfigError, match=rf"teacher, which has another tokenizer .*\(12 tokens, and {mine.tokens}\)"):
        run(tokenizer_fingerprint="another", tokens=12)
    run(tokenizer_fingerprint=None, tokens=None)
    assert "does not tell its tokenizer" in caplog.text


def test_a_teacher_that_lacks_the_policys_ids_is_refused(make_config: MakeConfig, score: Score) -> None:
    path = score("--tail")
    table = pq.read_table(path / "part-00000.parquet")
    about = json.loads(table.schema.metadata[b"grpo"]) | {"vocab_size": 40}
    pq.write_table(table.replace_schema_metadata({b"grpo": json.dumps(about)}), path / "part-00000.parquet")
    with pytest.raises(ConfigError, match=r"the teacher of distillation.targets has a vocabulary of 40"):
        train(offline(make_config, path))


def test_ids_and_lengths_that_the_policy_has_not_are_refused(
    make_config: MakeConfig, score: Score, tmp_path: Path
) -> None:
    path = score("--tail")
    file = path / "part-00000.parquet"
    table = pq.read_table(file)
    for name, value, says in (("prompt_ids", [5000], "the id 5000"), ("completion_ids", [5] * 300, "of 305 tokens")):
        column = pa.array([value, *table[name].to_pylist()[1:]], table.schema.field(name).type)
        pq.write_table(table.set_column(table.schema.get_field_index(name), name, column), file)
        with pytest.raises(ConfigError, match=says):
            train(offline(make_config, path))


def test_what_are_no_targets_is_said(
    make_config: MakeConfig, score: Score, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"line": [1]}), tmp_path / "bare.parquet")
    (tmp_path / "text.jsonl").write_text("{}")
    (tmp_path / "empty").mkdir()
    for name, says in {
        "missing": "no file or directory",
        "bare.parquet": "cannot be read as targets",
        "text.jsonl": "no parquet or arrow file",
        "empty": "no parquet or arrow file",
    }.items():
        with pytest.raises(ConfigError, match=f"distillation.targets: .*{says}"):
            train(offline(make_config, tmp_path / name))
    path = score("--tail")
    file = path / "part-00000.parquet"
    pq.write_table(pq.read_table(file).replace_schema_metadata(None), file)
    with pytest.raises(ConfigError, match="does not say which format"):
        train(offline(make_config, path))

    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name="pyarrow")

    monkeypatch.setattr(target_files.importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"pip install 'grpo-refserver\[data\]'"):
        train(offline(make_config, path))
