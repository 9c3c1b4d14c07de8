"""trackio and MLflow themselves: what a run wrote is what they read back. Skipped, by name, where one is not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# A process of its own for each: both keep one run for the whole process, and read their directory when they are imported.
WRITE = """
import pathlib, sys
from grpo_training.report.trackers import RemoteTracker

tracker = RemoteTracker(sys.argv[1], project="sums", directory=pathlib.Path(sys.argv[2]), settings={"loss": {"beta": 0.1}})
for step in range(3):
    tracker.write(step, {"reward/mean": step / 4, "kl": float("nan")})
tracker.close()
"""
READ = {
    "trackio": """
from trackio.sqlite_storage import SQLiteStorage

[run] = SQLiteStorage.get_runs("sums")
for entry in SQLiteStorage.get_logs("sums", run):
    if "reward/mean" in entry:
        print(entry["step"], entry["reward/mean"])
""",
    "mlflow": """
import mlflow

[run] = mlflow.search_runs(search_all_experiments=True, output_format="list")
assert run.data.params == {"loss.beta": "0.1"}, run.data.params
for entry in mlflow.MlflowClient().get_metric_history(run.info.run_id, "reward/mean"):
    print(entry.step, entry.value)
assert "kl" not in run.data.metrics
""",
}


@pytest.mark.parametrize("name", READ)
def test_what_was_written_is_read_back(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(name, reason=f"pip install {name}")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    for script, *arguments in ((WRITE, name, str(tmp_path)), (READ[name],)):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", script, *arguments],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
    assert [line.split() for line in done.stdout.splitlines()[-3:]] == [["0", "0.0"], ["1", "0.25"], ["2", "0.5"]]
