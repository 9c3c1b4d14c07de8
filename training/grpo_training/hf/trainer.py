"""StableMaxTrainer: the Hugging Face Trainer with two hooks, the model's loss and the optimizer's gradients.

The loss goes in through `model.loss_function`, so that shift, ignored labels and gradient accumulation stay where
transformers has them; the projection goes onto the optimizer that `create_optimizer` has made, so that schedulers,
clipping, checkpoints and accelerate's wrapper see an ordinary optimizer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel, Trainer

from grpo_training.hf.arguments import StableMaxTrainingArguments
from grpo_training.hf.loss import StableMaxLoss, base_of
from grpo_training.hf.projection import ProjectZero, project_optimizer


class StableMaxTrainer(Trainer):
    """A Trainer for `StableMaxTrainingArguments`; with all of its switches off it is the Trainer."""

    args: StableMaxTrainingArguments

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: StableMaxTrainingArguments | None = None,
        **kwargs: Any,
    ) -> None:
        """Arguments as the Trainer's. Raises ValueError where StableMax or the projection could not be applied."""
        if args is None or not isinstance(args, StableMaxTrainingArguments):
            raise ValueError("args must be StableMaxTrainingArguments: plain TrainingArguments have no switches")
        if args.stable_max and kwargs.get("compute_loss_func") is not None:
            raise ValueError("compute_loss_func and use_stable_max are two losses: leave one of them out")
        init = kwargs.get("model_init")
        if init is not None and args.expand_final_layer:
            raise ValueError("expand_final_layer changes the model it is given: with model_init do it in there")
        if args.expand_final_layer and model is not None:
            expand_final_layer(model)
        super().__init__(model=model, args=args, **kwargs)
        if args.deepspeed and not self.is_deepspeed_enabled:
            raise ValueError(
                "deepspeed is set, and accelerate leaves DeepSpeed out where ACCELERATE_USE_CPU is true in the environment: "
                "unset that (use_cpu and DS_ACCELERATOR=cpu put DeepSpeed on a CPU)"
            )
        together = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        if self.is_deepspeed_enabled and args.world_size != together:
            raise ValueError(
                f"accelerate counts {args.world_size} process and DeepSpeed {together}: every one would train on all rows. "
                "On a CPU, set use_cpu"
            )
        self.loss: StableMaxLoss | None = None
        if args.stable_max:
            self.loss = StableMaxLoss(
                collapse_free=args.use_log_stable_max, label_smoothing=args.label_smoothing_factor
            )
            self.label_smoother = None  # it is a softmax loss on the model's logits, and would win over the model's
            assert self.model is not None
            self._set_loss(self.model)
        self._projected: Optimizer | None = None
        if args.use_orthogonal_optimizer and self.is_deepspeed_enabled:
            # Not in create_optimizer: with an optimizer in its own configuration DeepSpeed never has it called.
            self.add_callback(ProjectZero(self, skip=args.skip_param_types, granularity=args.granularity))

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """A new model of a hyperparameter search gets the loss too."""
        model = super().call_model_init(trial)
        if getattr(self, "loss", None) is not None:
            self._set_loss(model)
        return model

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """The Trainer's optimizer, with the projection hooked onto its step. Once, however often it is called."""
        given = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper calls the optimizer inside
        if self.args.use_orthogonal_optimizer and self._projected is not inner and not self.is_deepspeed_enabled:
            skip = self.args.skip_param_types
            if given and skip is not None:
                raise ValueError(
                    "skip_param_types cannot regroup an optimizer that you made: build it from "
                    "grpo_training.orthograd.parameter_groups, and leave skip_param_types unset"
                )
            target = self.model if model is None else model
            assert target is not None
            project_optimizer(self, inner, target, skip=() if given else skip, granularity=self.args.granularity)
            self._projected = inner
        return optimizer

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The model's loss; RuntimeError when the model did not use the loss function it was given."""
        before = self.loss.calls if self.loss is not None else 0
        result = super().compute_loss(model, inputs, *args, **kwargs)
        if self.loss is not None and self.loss.calls == before:
            name = type(base_of(self.accelerator.unwrap_model(model))).__name__
            raise RuntimeError(
                f"{name} computed a loss without its loss_function, so StableMax was not used: either the batch has no "
                f"labels, or the model has a loss of its own (then wrap training in grpo_training.patching."
                f"patch_cross_entropy() and leave use_stable_max off)"
            )
        return result

    def _set_loss(self, model: nn.Module) -> None:
        base = base_of(model)
        if not isinstance(base, PreTrainedModel):
            raise ValueError(f"{type(base).__name__} is no transformers model and has no loss_function to set")
        base.loss_function = self.loss


def expand_final_layer(model: nn.Module) -> int:
    """Give a causal language model one output more than it has, with zero weights; returns the id of that output.

    Its logit starts at 0, a StableMax mass of 1, and is never a target. Input embedding and config grow along, so that
    the model saves and loads; generation never picks it. Raises ValueError for a model without an output embedding.
    """
    if hasattr(model, "peft_config"):
        raise ValueError("expand_final_layer: expand the model before it gets its adapter")
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    if not isinstance(model, PreTrainedModel) or head is None:
        raise ValueError(f"expand_final_layer: {type(model).__name__} has no output embedding")
    if hasattr(head.weight, "ds_id"):
        raise ValueError("expand_final_layer: DeepSpeed ZeRO-3 has cut the model up; expand it before, and save it")
    new = head.weight.shape[0]
    model.resize_token_embeddings(new + 1, mean_resizing=False)
    head = model.get_output_embeddings()
    assert head is not None
    with torch.no_grad():
        head.weight[new] = 0.0
        if getattr(head, "bias", None) is not None:
            head.bias[new] = 0.0
    if model.generation_config is not None:
        model.generation_config.suppress_tokens = [*(model.generation_config.suppress_tokens or []), new]
    return new
