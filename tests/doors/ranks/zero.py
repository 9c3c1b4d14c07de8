"""One of the processes of a StableMaxTrainer run, with DeepSpeed or without: rank 0 writes what was learned.

zero.py OUT STAGE GRANULARITY      STAGE: 0 to 3, `own` for stage 3 with DeepSpeed's own optimizer, or `none`
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from grpo_training.hf import StableMaxTrainer, StableMaxTrainingArguments
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

ROWS, WIDTH, STEPS = 16, 9, 4


class Rows(Dataset):
    def __init__(self) -> None:
        self.ids = torch.randint(3, 40, (ROWS, WIDTH), generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[i], "labels": self.ids[i]}


class Weights(TrainerCallback):
    """Each weight whole, after the last step."""

    def __init__(self) -> None:
        self.sums: dict[str, list[float]] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == STEPS:
            for name, parameter in model.named_parameters():
                values = _whole(parameter).double().flatten()
                self.sums[name] = values[:: max(len(values) // 50, 1)].tolist()


def _whole(parameter: torch.nn.Parameter) -> torch.Tensor:
    if not hasattr(parameter, "ds_id") and not hasattr(parameter, "_hp_mapping"):
        return parameter.detach()
    from deepspeed.utils import safe_get_full_fp32_param  # pyright: ignore[reportMissingImports]

    return safe_get_full_fp32_param(parameter)


def config(stage: str) -> dict[str, Any]:
    source = Path(__file__).parents[3] / "examples" / "deepspeed" / "zero3.json"
    settings = json.loads(source.read_text())
    settings["zero_optimization"]["stage"] = 3 if stage == "own" else int(stage)
    if stage == "own":
        settings["optimizer"] = {"type": "AdamW", "params": {"lr": 1e-2, "weight_decay": 0.0, "torch_adam": True}}
    return settings


def main() -> None:
    out, stage, granularity = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    world = int(os.environ.get("WORLD_SIZE", "1"))
    torch.manual_seed(0)
    args = StableMaxTrainingArguments(
        str(out / "trained"),
        use_stable_max=True,
        use_orthogonal_optimizer=granularity != "plain",
        orthogonal_granularity="tensor" if granularity == "plain" else granularity,
        max_steps=STEPS,
        per_device_train_batch_size=4 // world,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        max_grad_norm=0.5,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        bf16=False,
        deepspeed=None if stage == "none" else config(stage),
        ddp_backend="gloo" if world > 1 else None,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=41,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=32,
            initializer_range=0.2,
            tie_word_embeddings=False,
        )
    )
    weights = Weights()
    trainer = StableMaxTrainer(model=model, args=args, train_dataset=Rows(), callbacks=[weights])
    trainer.train()
    if trainer.is_world_process_zero():
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        (out / "learned.json").write_text(json.dumps({"losses": losses, "weights": weights.sums}))


if __name__ == "__main__":
    main()
