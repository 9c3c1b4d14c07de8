"""Figures by step, read from records, and their means: what was not measured counts in none.

A record is one line of a run's JSON lines; a figure that it holds as null was not finite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

WINDOW = 10  # steps that the summary and the smooth lines average over


def column(records: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """One figure by step, NaN where a record holds null; empty when no record has it."""
    if not any(name in record for record in records):
        return np.empty(0)
    return np.array([math.nan if record.get(name) is None else record[name] for record in records], dtype=float)


def mean(values: np.ndarray) -> float | None:
    """Of the finite ones; None where there is none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else None


def largest(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.max()) if len(finite) else None


def total(records: Sequence[Mapping[str, Any]], name: str) -> int | None:
    """A count over all steps; None where no step has it."""
    values = column(records, name)
    return int(np.nansum(values)) if len(values) else None


def running_mean(values: np.ndarray) -> np.ndarray:
    """Mean of each step and up to WINDOW - 1 before it; a step without a value does not count."""
    means = [mean(window) for window in _windows(values)]
    return np.array([math.nan if value is None else value for value in means])


def running_median(values: np.ndarray) -> np.ndarray:
    """Like running_mean; no single step moves it."""
    finite = [window[np.isfinite(window)] for window in _windows(values)]
    return np.array([float(np.median(window)) if len(window) else math.nan for window in finite])


def _windows(values: np.ndarray) -> list[np.ndarray]:
    return [values[max(0, i - WINDOW + 1) : i + 1] for i in range(len(values))]
