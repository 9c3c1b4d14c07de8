"""What both sides call things: the values that fields may have, media types and routes, and the dtype of each figure."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Literal

import numpy as np
import numpy.typing as npt

Normalizer = Literal["softmax", "stablemax"]
Extra = Literal["entropy", "logsumexp", "rank"]
NORMALIZERS: tuple[Normalizer, ...] = ("softmax", "stablemax")
EXTRAS: tuple[Extra, ...] = ("entropy", "logsumexp", "rank")

MEDIA_JSON = "application/json"
MEDIA_TENSORS = "application/x-safetensors"
ROUTE_LOGPROBS = "/v1/logprobs"
ROUTE_REFERENCE = "/v1/reference"

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]


class Status(IntEnum):
    """What became of one completion. Anything but OK means: do not use its numbers."""

    OK = 0
    NONFINITE = 1  # a log-prob is NaN or infinite: the row had no distribution, or the token has no mass


# Every per-token array that may come beside `logprobs`, with its dtype; (N,) unless noted.
EXTRA_ARRAYS: Mapping[str, type[np.generic]] = {
    "entropy": np.float32,  # nats
    "logsumexp": np.float32,  # of the temperature-scaled logits (of symlog of them under StableMax)
    "rank": np.int32,  # 0: no token has a larger log-prob
    "top_ids": np.int32,  # (N, top_k)
    "top_logprobs": np.float32,  # (N, top_k), best first
    "token_logprobs": np.float32,  # (N, k) for the asked token_ids
}
