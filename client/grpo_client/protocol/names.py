"""What both sides call things: the values that fields may have, media types and routes."""

from __future__ import annotations

from enum import IntEnum
from typing import Literal

import numpy as np
import numpy.typing as npt

Normalizer = Literal["softmax", "stablemax"]
Extra = Literal["entropy", "logsumexp", "rank", "tail", "hidden"]
TopDtype = Literal["float32", "float16"]
NORMALIZERS: tuple[Normalizer, ...] = ("softmax", "stablemax")
EXTRAS: tuple[Extra, ...] = ("entropy", "logsumexp", "rank", "tail")
# What makes a log-prob, and gives the model away: only where a server allows it.
HIDDEN: Extra = "hidden"
TOP_DTYPES: tuple[TopDtype, ...] = ("float32", "float16")

MEDIA_JSON = "application/json"
MEDIA_TENSORS = "application/x-safetensors"
ROUTE_LOGPROBS = "/v1/logprobs"
ROUTE_REFERENCE = "/v1/reference"
ROUTE_REFERENCES = "/v1/references"

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]


class Status(IntEnum):
    """What became of one completion. Anything but OK means: do not use its numbers."""

    OK = 0
    NONFINITE = 1  # a log-prob is NaN or infinite: the row had no distribution, or the token has no mass
