"""The environment of calculator.yaml: it reads a sum from what the policy wrote, and puts the result behind it."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable

_SUM = re.compile(r"(-?\d+)\s*([-+*])\s*(-?\d+)")
_OPERATORS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}


class Calculator:
    """Answers the first line, and has nothing to say to the second: that is the policy's own answer."""

    def __init__(self) -> None:
        self.calls = 0

    def step(self, text: str) -> str | None:
        """text: the policy's turn. None ends the completion."""
        if self.calls:
            return None
        self.calls += 1
        return f"Result: {self._computed(text)}\nAnswer:"

    def _computed(self, text: str) -> str:
        found = _SUM.search(text)
        if found is None:
            return "error"
        left, sign, right = found.groups()
        return str(_OPERATORS[sign](int(left), int(right)))
