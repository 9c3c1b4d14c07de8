"""TrainingArguments with the switches for StableMax and orthogonal gradients."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

from transformers import TrainingArguments

from grpo_training.config import Granularity

_FUSED = ("cross_entropy", "fused_linear_cross_entropy")


@dataclass
class StableMaxTrainingArguments(TrainingArguments):
    """Everything that TrainingArguments takes, and the fields below.

    Raises ValueError where another setting would put a loss in StableMax's place without a word.
    """

    use_stable_max: bool = field(
        default=False, metadata={"help": "Cross-entropy under StableMax: -log of s(x_t) / sum s(x_j)."}
    )
    use_log_stable_max: bool = field(
        default=False,
        metadata={
            "help": "The same loss from LogStableMax in its collapse-free form, which stays above zero where the other "
            "rounds to it. Goes before use_stable_max when both are set."
        },
    )
    use_orthogonal_optimizer: bool = field(
        default=False, metadata={"help": "Take the part along the weights out of every gradient before each step."}
    )
    expand_final_layer: bool = field(
        default=False,
        metadata={"help": "Experimental: one output more than the vocabulary has, which is never a target."},
    )
    skip_param_types: list[str] | None = field(
        default=None,
        metadata={
            "help": "Parameters whose name contains one of these, or whose module is of a class of that name, keep "
            "their plain gradient. Unset: the norms and biases of architectures in MODEL_CONFIG_MAPPING. []: none."
        },
    )
    orthogonal_granularity: str = field(
        default="tensor",
        metadata={"help": "What is orthogonal to what.", "choices": ["tensor", "row", "global"]},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.orthogonal_granularity not in ("tensor", "row", "global"):
            raise ValueError(
                f"orthogonal_granularity must be tensor, row or global, got {self.orthogonal_granularity!r}"
            )
        if self.stable_max and self.use_liger_kernel:
            liger = self.liger_kernel_config or {}
            if any(liger.get(name, name == "fused_linear_cross_entropy") for name in _FUSED):
                raise ValueError(
                    "use_liger_kernel puts Liger's own softmax cross-entropy in place of the model's loss, so StableMax "
                    "would never be used. Set liger_kernel_config={'cross_entropy': False, "
                    "'fused_linear_cross_entropy': False}, or leave one of the two out"
                )

    @property
    def stable_max(self) -> bool:
        """Whether the loss is StableMax's, in either form."""
        return self.use_stable_max or self.use_log_stable_max

    @property
    def granularity(self) -> Granularity:
        return cast(Granularity, self.orthogonal_granularity)
