"""What the plugin adds to Axolotl's configuration, and what it cannot be combined with.

The check runs on the validated configuration, where defaults are filled in: `cut_cross_entropy` is true by default as soon
as its plugin is listed, which a validator that runs before never sees.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

RIVALS = (
    "liger_cross_entropy",
    "liger_fused_linear_cross_entropy",
    "cut_cross_entropy",
    "chunked_cross_entropy",
)


class StableMaxArgs(BaseModel):
    """Fields beside Axolotl's own."""

    stablemax: bool | None = Field(default=None, description="Cross-entropy under StableMax in place of softmax.")
    orthograd: bool | None = Field(
        default=None, description="Take the part along the weights out of every gradient before each step."
    )
    orthograd_granularity: Literal["tensor", "row", "global"] = Field(
        default="tensor", description="What is orthogonal to what."
    )
    orthograd_skip: list[str] | None = Field(
        default=None,
        description="Parameters by part of their name, or by the class of their module, that keep their gradient. "
        "Unset: norms and biases of known architectures.",
    )

    @model_validator(mode="after")
    def _no_second_loss(self) -> Self:
        refuse_conflicts(self)
        return self


def refuse_conflicts(cfg: Any) -> None:
    """ValueError, naming the setting to change, for anything that would undo StableMax or OrthoGrad without a word.

    cfg: anything with Axolotl's settings as attributes; one that is not there counts as unset.
    """
    if getattr(cfg, "stablemax", None):
        for name in RIVALS:
            if getattr(cfg, name, None):
                raise ValueError(
                    f"stablemax: true and {name}: true are two replacements of one loss, and only one would be used: "
                    f"set {name}: false (it may be true by default once its plugin is listed), or leave stablemax out"
                )
        if getattr(cfg, "rl", None):
            raise ValueError(
                f"stablemax: true does nothing with rl: {cfg.rl}: that trainer takes log-probs from a head of its own"
            )
    if getattr(cfg, "orthograd", None):
        fsdp = getattr(cfg, "fsdp_config", None)
        if fsdp and getattr(cfg, "fsdp_version", None) == 1:
            raise ValueError("orthograd: true does not work with FSDP1, which flattens weights: set fsdp_version: 2")
