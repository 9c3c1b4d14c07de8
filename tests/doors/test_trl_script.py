"""TRL's own GRPO script, which `trl grpo` runs, against the service: its import is changed and the URL added, nothing else."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="the TRL door needs the extra `trl`")
from trl.scripts import grpo

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

IMPORT = "from trl import GRPOTrainer, get_dataset,"
TRAINER = "trainer = GRPOTrainer(\n"
STEPS = 4


def ported(source: str, url: str) -> str:
    assert source.count(IMPORT) == source.count(TRAINER) == 1
    ours = "from grpo_training.trl import RemoteReferenceGRPOTrainer as GRPOTrainer"
    indent = source[: source.index(IMPORT)].rsplit("\n", 1)[1]
    source = source.replace(IMPORT, f"{ours}\n{indent}from trl import get_dataset,")
    return source.replace(TRAINER, f'{TRAINER}        reference="{url}",\n')


def history(script: Path, out: Path, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the script logged at each step."""
    given = {
        "model_name_or_path": model, "dataset_name": data, "reward_funcs": "rewards_of_mine.digits", "output_dir": out,
        "beta": 0.3, "max_steps": STEPS, "learning_rate": 1e-2, "num_generations": 4, "per_device_train_batch_size": 8,
        "max_completion_length": 8, "logging_steps": 1, "save_steps": STEPS, "report_to": "none", "use_cpu": True,
        "bf16": False, "gradient_checkpointing": False, "dtype": "float32", "seed": 7, "disable_tqdm": True,
    }  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(
            sys, "argv", [str(script), *(str(x) for name, value in given.items() for x in (f"--{name}", value))]
        )
        runpy.run_path(str(script), run_name="__main__")
    state = json.loads((out / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    return [entry for entry in state["log_history"] if "loss" in entry]


def test_trls_own_script_learns_the_same(
    tiny_path: Path, reference_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    rows = ["1+2=", "a", "30+4=", "b c", "7", "55+1="]
    (data / "train.jsonl").write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows))
    (tmp_path / "rewards_of_mine.py").write_text(
        "def digits(completions, **_):\n    return [sum(c.isdigit() for c in text) / 8 for text in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    own = Path(grpo.__file__)
    mine = tmp_path / "grpo.py"
    mine.write_text(ported(own.read_text(), reference_url))
    local = history(own, tmp_path / "local", tiny_path, data, monkeypatch)
    remote = history(mine, tmp_path / "remote", tiny_path, data, monkeypatch)
    assert len(local) == len(remote) == STEPS
    assert max(entry["kl"] for entry in local) > 1e-3
    for step, (one, two) in enumerate(zip(local, remote, strict=True)):
        print(step, *(f"{name} {one[name]:.7f} {two[name]:.7f}" for name in ("loss", "kl", "reward", "grad_norm")))
        for name in ("loss", "kl", "reward", "grad_norm"):
            assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-5), (step, name)
