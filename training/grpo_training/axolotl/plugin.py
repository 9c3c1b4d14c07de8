"""StableMaxPlugin: what Axolotl calls, in the order of a run.

    get_input_args        the fields, checked together with everybody else's
    pre_model_load        checked again (the configuration may have been changed since), then torch's loss is patched
    post_model_load       a model whose forward goes around the patch is refused
    post_trainer_create   the trainer's optimizer will be projected
    post_train_unload     the patch is taken out

Axolotl 0.19 has a `create_optimizer` hook that nothing calls; the plugin does not rely on it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from axolotl.integrations.base import BasePlugin  # pyright: ignore[reportMissingImports]
from torch.optim import Optimizer
from transformers import Trainer

from grpo_training.axolotl.args import refuse_conflicts
from grpo_training.hf.projection import ProjectZero, project_optimizer, refuse_partitions
from grpo_training.patching import CrossEntropyPatch, PatchConflict, bypass, enable_cross_entropy_patch


class StableMaxPlugin(BasePlugin):
    """StableMax and OrthoGrad for Axolotl; see the package's docstring for the configuration."""

    def __init__(self) -> None:
        super().__init__()
        self._patch: CrossEntropyPatch | None = None

    def get_input_args(self) -> str:
        return "grpo_training.axolotl.StableMaxArgs"

    def pre_model_load(self, cfg: Any) -> None:
        """Raises ValueError for a conflicting setting, PatchConflict where the loss is patched already."""
        refuse_conflicts(cfg)
        if cfg.stablemax and (self._patch is None or not self._patch.active):
            self._patch = enable_cross_entropy_patch()

    def post_model_load(self, cfg: Any, model: Any) -> None:
        """Raises PatchConflict for a model that has a softmax loss of its own, or when the patch has been replaced."""
        if not cfg.stablemax:
            return
        if self._patch is None or not self._patch.active:
            raise PatchConflict("stablemax: something has replaced torch's cross-entropy while the model was loaded")
        if reason := bypass(model):
            raise PatchConflict(f"stablemax: {reason}")

    def post_trainer_create(self, cfg: Any, trainer: Trainer) -> None:
        """Project the optimizer when the trainer makes it: groups must be cut before there is a scheduler."""
        if not cfg.orthograd:
            return
        refuse_partitions(trainer)
        if trainer.is_deepspeed_enabled:
            granularity = cfg.orthograd_granularity or "tensor"
            trainer.add_callback(ProjectZero(trainer, skip=cfg.orthograd_skip, granularity=granularity))
            return
        trainer.create_optimizer = _projected(trainer, trainer.create_optimizer, cfg)

    def post_train_unload(self, cfg: Any) -> None:
        """Give torch its cross-entropy back."""
        if self._patch is not None and self._patch.active:
            self._patch.remove()
        self._patch = None


def _projected(trainer: Trainer, create: Callable[..., Optimizer], cfg: Any) -> Callable[..., Optimizer]:
    done: list[Optimizer] = []

    def create_optimizer(model: Any = None) -> Optimizer:
        optimizer = create() if model is None else create(model)
        inner = getattr(optimizer, "optimizer", optimizer)
        if not any(inner is one for one in done):
            target = trainer.model if model is None else model
            assert target is not None
            project_optimizer(
                trainer,
                inner,
                target,
                skip=cfg.orthograd_skip,
                granularity=cfg.orthograd_granularity or "tensor",
            )
            done.append(inner)
        return optimizer

    return create_optimizer
