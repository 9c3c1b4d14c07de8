"""Peak memory of TRL's GRPOTrainer: with the reference in the trainer, and with it behind the service.

    python -m benchmarks.trl_memory            needs `trl` and `datasets`; the demo model, three steps, a few minutes

Each trainer runs in a process of its own; what counts is that process's highest resident memory from load to the last
step. The service is another process and is not counted: it may stand on another machine, and serve many trainers.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from grpo_client.models.demo import locate
from rich.console import Console
from rich.table import Table

STEPS = 3


def lengths(completions: list[str], **_: Any) -> list[float]:
    """A reward that any model can move."""
    return [min(len(text), 60) / 60 for text in completions]


def train(reference: str | None) -> dict[str, Any]:
    """Three steps with beta 0.04, in this process; its peak and what was logged."""
    import trl
    from datasets import Dataset
    from grpo_training.trl import RemoteReferenceGRPOTrainer

    fields = {
        "learning_rate": 1e-5,
        "num_generations": 4,
        "per_device_train_batch_size": 4,
        "max_completion_length": 16,
    }
    with tempfile.TemporaryDirectory() as out:
        args = trl.GRPOConfig(
            out, beta=0.04, max_steps=STEPS, use_cpu=True, bf16=False, report_to=[], save_strategy="no", seed=1,
            logging_steps=1, gradient_checkpointing=False, disable_tqdm=True, **fields,
        )  # fmt: skip
        data = Dataset.from_dict({"prompt": ["The sky is", "One and one is", "Water is", "A cat sat on"]})
        cls, more = (
            (trl.GRPOTrainer, {}) if reference is None else (RemoteReferenceGRPOTrainer, {"reference": reference})
        )
        trainer = cls(model=locate("demo").path, reward_funcs=lengths, args=args, train_dataset=data, **more)
        held = trainer.ref_model
        second = hasattr(held, "parameters") and any(p.numel() for p in held.parameters())
        trainer.train()
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"peak_mb": int(found[1]) * 1024 / 1e6, "second_model": second, "losses": losses}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", metavar="URL", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        print(json.dumps(train(args.child or None)))
        return
    from .contenders import server

    table = Table("reference", "second model in the trainer", "peak, MB", "losses", title=f"GRPOTrainer, {STEPS} steps")
    with server() as (url, _):
        for name, child in (("in the trainer (TRL)", ""), ("behind the service", url)):
            command = [sys.executable, "-m", "benchmarks.trl_memory", "--child", child]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            told = json.loads(output.splitlines()[-1])
            losses = ", ".join(f"{loss:.4g}" for loss in told["losses"])
            table.add_row(name, "yes" if told["second_model"] else "no", f"{told['peak_mb']:,.0f}", losses)
    Console().print(table)


if __name__ == "__main__":
    main()
