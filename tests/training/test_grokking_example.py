"""The grokking example on tables so small that it takes seconds: the effects are there, and so are the files it writes."""

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def grokking(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example's modules, which are no installed package."""
    monkeypatch.syspath_prepend(ROOT)
    import examples.grokking.__main__
    import examples.grokking.bars
    import examples.grokking.plots

    return examples.grokking


def last(grokking: ModuleType, name: str, **settings: object) -> dict[str, float]:
    experiment = replace(grokking.experiments.catalogue()[name], points=1, **settings)
    return [*grokking.train.run(experiment, seed=0)][-1]


def test_the_tables_are_whole_and_right(grokking: ModuleType) -> None:
    for name, of in (("addition", torch.add), ("multiplication", torch.mul)):
        task = grokking.tasks.modular(name, 7, 0.5, seed=0)
        inputs = torch.cat((task.train_inputs, task.test_inputs))
        targets = torch.cat((task.train_targets, task.test_targets))
        first, second = inputs[:, :7].argmax(1), inputs[:, 7:].argmax(1)
        assert torch.equal(targets, of(first, second) % 7)
        assert len({*zip(first.tolist(), second.tolist(), strict=True)}) == 49
        assert len(task.train_inputs) == 24


def test_parity_is_that_of_the_relevant_bits_and_no_sample_comes_twice(grokking: ModuleType) -> None:
    task = grokking.tasks.sparse_parity(3, 10, 400, 0.5, seed=0)
    assert torch.equal(task.test_targets, task.test_inputs[:, :3].sum(1).long() % 2)
    assert len(torch.cat((task.train_inputs, task.test_inputs)).unique(dim=0)) == 400
    with pytest.raises(ValueError, match="different samples"):
        grokking.tasks.sparse_parity(3, 2, 400, 0.5, seed=0)


def test_an_orthogonal_gradient_generalises_where_the_plain_one_only_remembers(grokking: ModuleType) -> None:
    small = {"modulus": 23, "fraction": 0.6, "width": 100, "epochs": 400, "lr": 0.01}
    plain = last(grokking, "addition-plain", **small)
    projected = last(grokking, "addition-orthogonal", **small)
    assert plain["train"] == projected["train"] == 1.0
    assert projected["test"] > plain["test"] + 0.25


def test_softmax_collapses_and_the_other_losses_do_not(grokking: ModuleType) -> None:
    small = {"modulus": 13, "width": 64, "epochs": 600, "lr": 0.1}
    zeros = {
        name: last(grokking, f"addition-70-{name}", **small)["zero_share"]
        for name in ("plain", "collapse-free", "stablemax")
    }
    assert zeros["plain"] > 0.5
    assert zeros["collapse-free"] == zeros["stablemax"] == 0.0


def test_a_run_is_written_read_judged_and_drawn(
    grokking: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = ["--modulus", "7", "--width", "8", "--epochs", "4", "--output", str(tmp_path)]
    grokking.__main__.main(["addition-plain", "addition-orthogonal", "parity-stablemax", "--seeds", "0", "1", *tiny])
    written = sorted(tmp_path.glob("*.jsonl"))
    assert len(written) == 6
    settings, *records = [json.loads(line) for line in written[0].read_text().splitlines()]
    assert settings["name"] == "addition-orthogonal"
    assert settings["orthogonal"]
    assert [record["epoch"] for record in records] == [0, 1, 2, 3, 4]
    assert {"train", "test", "zero_share", "max_logit", "weight_norm", "cosine"} <= records[0].keys()

    before = written[0].stat().st_mtime_ns
    grokking.__main__.main(["addition-orthogonal", "--keep", *tiny])
    assert written[0].stat().st_mtime_ns == before
    grokking.__main__.main(["addition-orthogonal", *tiny])
    again = [json.loads(line) for line in written[0].read_text().splitlines()][1:]
    assert [{**r, "seconds": 0} for r in again] == [{**r, "seconds": 0} for r in records]

    grokking.plots.main([str(tmp_path)])
    assert (tmp_path / "grokking-orthogonal.png").stat().st_size > 5000
    assert not (tmp_path / "grokking-collapse.png").exists()
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        grokking.bars.main([str(tmp_path), "--markdown"])
    assert end.value.code == 1
    said = capsys.readouterr().out
    assert "not run" in said
    assert "| 2 | NO |" in said


def test_a_run_that_was_cut_off_does_not_count(grokking: ModuleType, tmp_path: Path) -> None:
    experiment = replace(grokking.experiments.catalogue()["addition-plain"], modulus=5, width=4, epochs=4)
    path = grokking.results.path_of(tmp_path, experiment, 0)
    with grokking.results.writing(path, experiment, 0) as file:
        grokking.results.write(file, next(iter(grokking.train.run(experiment, 0))))
    assert grokking.results.load(tmp_path) == []


def test_every_experiment_of_the_claims_and_the_figures_exists(grokking: ModuleType) -> None:
    known = grokking.experiments.catalogue()
    claimed = {name for bar in grokking.bars.bars() for name in bar.names}
    drawn = {
        line.experiment for panels in grokking.plots.figures().values() for panel in panels for line in panel.lines
    }
    assert claimed | drawn <= known.keys()
