"""Whether a checkpoint may be gone on from: what a run learns must be the same, where and how it runs may differ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from grpo_training.config import CheckpointError, TrainConfig

# What a resumed run may change: where and how long it runs, and whom it asks; not what is learned.
_MAY_CHANGE = (
    "reference.urls", "reference.api_key", "reference.admin_key", "reference.timeout", "reference.max_wait", "reference.pin",
    "distributed", "collapse", "eval.every", "lora.save_merged",
    "trainer.steps", "trainer.output", "trainer.checkpoint_every", "trainer.keep_checkpoints", "trainer.tensorboard",
    "trainer.tracker",
    "trainer.save_model", "model.threads", "model.device", "model.gradient_checkpointing",
    "rollout.base_url", "rollout.api_key_env", "rollout.timeout", "rollout.max_wait", "rollout.concurrency",
    "rollout.sync_command", "distillation.teachers", "distillation.starts_equal",
)  # fmt: skip


def check_same_run(then: dict[str, Any], now: TrainConfig) -> None:
    """then: the config in the checkpoint, as JSON. Raises CheckpointError naming what differs and must not."""
    changed = sorted(_differences(then, now.model_dump(mode="json")))
    changed = [name for name in changed if not name.startswith(_MAY_CHANGE)]
    if changed:
        raise CheckpointError(
            f"the checkpoint is of a run with other settings: {', '.join(changed)}. "
            f"Take those of its config.json, or start a new run in another trainer.output"
        )


def check_same_data(then: dict[str, str] | None, now: dict[str, str]) -> None:
    """Fingerprints of each task's entries and of a frozen base model. Raises CheckpointError naming what has changed."""
    changed = [name for name in now if then is not None and then.get(name) != now[name]]
    if changed:
        raise CheckpointError(
            f"the data has changed since the checkpoint was written: {', '.join(changed)} (a file, reasoning-gym's "
            f"version, or under lora the base model). "
            f"Put the old data back, or start a new run in another trainer.output"
        )


def _differences(then: Any, now: Any, name: str = "") -> Iterator[str]:
    if isinstance(then, dict) and isinstance(now, dict):
        for key in then.keys() | now.keys():
            yield from _differences(then.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif then != now:
        yield name
