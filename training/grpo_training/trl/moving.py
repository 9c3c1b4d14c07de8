"""TRL's `sync_ref_model` for a reference that is served: alpha * policy + (1 - alpha) * reference, every so many steps.

    GRPOConfig(sync_ref_model=True, ref_model_mixup_alpha=0.6, ref_model_sync_steps=64, ...)

The policy is saved in `output_dir/reference`, which the server must be able to read under the same path, and the server
mixes it in; with alpha 1 it hosts the policy itself. Its admin key comes from GRPO_ADMIN_KEY. Where several processes train,
the first one has the reference moved, and the others follow.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from grpo_training.trl.served import ServedReference

ADMIN_KEY_VARIABLE = "GRPO_ADMIN_KEY"


class MoveReference(TrainerCallback):
    """At the end of every `ref_model_sync_steps`-th step. Raises the client's errors when the server does not take it."""

    def __init__(self, trainer: Trainer, reference: ServedReference) -> None:
        self._trainer, self._reference = trainer, reference

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        options: Any = args
        if state.global_step % options.ref_model_sync_steps == 0:
            self._move(Path(args.output_dir or ".").resolve() / "reference", options.ref_model_mixup_alpha)
        return control

    def _move(self, directory: Path, alpha: float) -> None:
        accelerator: Any = self._trainer.accelerator
        self._trainer.save_model(str(directory))  # all processes: each may hold a slice
        if accelerator.is_main_process:
            decay = None if alpha == 1.0 else 1.0 - alpha
            self._reference.move(str(directory), decay, os.environ.get(ADMIN_KEY_VARIABLE))
            shutil.rmtree(directory)  # the server has it in memory
        accelerator.wait_for_everyone()
        if not accelerator.is_main_process:
            self._reference.follow()
