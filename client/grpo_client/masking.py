"""What stands where nothing is asked: figures, left out of an answer and filled up in a `ScoreResult`; and ids of a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Figures = npt.NDArray[Any]
_FILL: Final = {"f": np.nan, "i": -1, "u": 0x7FC0}
PAD: Final = -1  # among asked ids: none


def filled(values: Figures, mask: Mask | None) -> Figures:
    """(M, ...) figures of the positions that were asked as (N, ...) of all: NaN, or -1 for whole numbers, in between. What is
    unsigned is bfloat16 by its bits."""
    if mask is None:
        return values
    out = np.full((len(mask), *values.shape[1:]), _FILL[values.dtype.kind], values.dtype)
    out[mask] = values
    return out


def asked_rows(extras: Mapping[str, Figures], mask: Mask | None) -> dict[str, Figures]:
    """The opposite, for each extra of an answer."""
    return {name: values if mask is None else values[mask] for name, values in extras.items()}
