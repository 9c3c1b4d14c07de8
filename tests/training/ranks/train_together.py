"""On each of two ranks: the GRPO runs that a JSON file lists, one after the other. Rank 0 writes their summaries."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from grpo_training.config import TrainConfig
from grpo_training.run.loop import train


def main() -> None:
    torch.set_num_threads(1)
    answer, runs = map(Path, sys.argv[1:])
    state = PartialState(cpu=True)
    summaries = []
    for run in json.loads(runs.read_text()):
        resume = run.pop("resume", False)
        summaries.append(train(TrainConfig.model_validate(run), resume=resume))
    assert all(summaries) if state.is_main_process else not any(summaries)
    if state.is_main_process:
        answer.write_text(json.dumps({"summaries": summaries}))
    state.destroy_process_group()


if __name__ == "__main__":
    main()
