"""Who answers the policy in the middle of a completion: tools, simulators, games."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from .section import Section


class EnvironmentConfig(Section):
    """An environment of your own, and how much it may say."""

    factory: str
    """`module:Class`, importable or a file of the working directory; called once for each completion."""
    arguments: Mapping[str, Any] = Field(default_factory=dict)
    """What the class is called with."""
    max_turns: int = Field(default=8, ge=1)
    """Turns of the policy in a completion. One that the environment would let go on beyond them counts as cut."""
    max_observation_tokens: int = Field(default=256, ge=0)
    """Tokens of one message of the environment's; the rest of it is left out."""
    concurrency: int = Field(default=64, ge=1)
    """Of an asynchronous environment: calls under way at once."""
    timeout: float | None = Field(default=None, gt=0)
    """Of an asynchronous environment: seconds that a call may take."""
