"""What a completion earns: one function, or several with weights, and what becomes of one that fails."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from .section import Section

BUILT_IN = ("exact", "graded")
OnError = Literal["raise", "abstain", "value"]


class RewardConfig(Section):
    """One reward function."""

    function: str
    """`exact`, `graded`, `reasoning_gym:DATASET` (that dataset's scorer) or `module:function`."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """What its rewards are multiplied by before they are added to the others'."""
    arguments: Mapping[str, Any] | None = None
    """The function is called once with these, and what it returns is the reward function."""
    workers: int = Field(default=0, ge=0)
    """Of a function: processes that it runs in; 0: this one. Of an asynchronous function: calls under way at once; 0: all."""
    timeout: float | None = Field(default=None, gt=0)
    """Seconds that a call may take. A function that is not asynchronous runs in a process then, which is ended."""
    on_error: OnError | None = None
    """What becomes of a call that fails or takes too long; None: what task.on_error says."""
    error_value: float | None = Field(default=None, allow_inf_nan=False)
    """The reward of such a call with on_error=value; None: task.error_value."""

    @model_validator(mode="after")
    def _only_of_functions(self) -> Self:
        if self.function in BUILT_IN and (self.workers or self.timeout or self.arguments is not None):
            raise ValueError(
                f"{self.function} takes no workers, timeout or arguments: they are for functions of your own"
            )
        return self
