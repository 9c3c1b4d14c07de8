"""One of the processes of a StableMaxTrainer run, with DeepSpeed or without: rank 0 writes what was learned.

zero.py OUT STAGE GRANULARITY      STAGE: 0 to 3, 2 and 3 also with -offload or -bf16 behind; with -alone it is
                                   not told that this is a CPU; `own` for stage 3 with DeepSpeed's own optimizer; or `none`
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from grpo_training.hf import StableMaxTrainer, StableMaxTrainingArguments
from grpo_training.orthograd import zero
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


class Angles:
    """The largest cosine of a weight and its gradient, at any step, once that is projected."""

    def __init__(self) -> None:
        self.largest, self.measured = 0.0, 0
        project = zero.project_zero

        def measured(parameters: Any, **how: Any) -> None:
            chosen = list(parameters)
            project(chosen, **how)
            from deepspeed.utils import safe_get_full_grad  # pyright: ignore[reportMissingImports]

            pairs = [(safe_get_full_grad(p).double().flatten(), _whole(p).double().flatten()) for p in chosen]
            if how.get("granularity") == "global":
                pairs = [
                    (torch.cat(gradients), torch.cat(weights)) for gradients, weights in [zip(*pairs, strict=True)]
                ]
            for gradient, weight in pairs:
                cosine = torch.nn.functional.cosine_similarity(gradient, weight, dim=0)
                self.largest, self.measured = max(self.largest, abs(cosine.item())), self.measured + 1

        zero.project_zero = measured


def config(stage: str, more: str) -> dict[str, Any]:
    source = Path(__file__).parents[3] / "examples" / "deepspeed" / "zero3.json"
    settings = json.loads(source.read_text())
    settings["zero_optimization"]["stage"] = 3 if stage == "own" else int(stage)
    if stage == "own":
        settings["optimizer"] = {"type": "AdamW", "params": {"lr": 1e-2, "weight_decay": 0.0, "torch_adam": True}}
    if more == "offload":
        settings["zero_optimization"] |= {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
        if stage != "3":
            del settings["zero_optimization"]["offload_param"]  # which stage 3 alone has
    return settings


def main() -> None:
    out, granularity = Path(sys.argv[1]), sys.argv[3]
    stage, _, more = sys.argv[2].partition("-")
    angles = Angles()
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
        use_cpu=more != "alone",
        disable_tqdm=True,
        bf16=more == "bf16",
        deepspeed=None if stage == "none" else config(stage, more),
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
        told = {"losses": losses, "weights": weights.sums, "cosine": angles.largest, "measured": angles.measured}
        (out / "learned.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
