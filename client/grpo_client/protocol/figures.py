"""The arrays that come beside log-probs: their types, and which of them a request asks for, in what shape."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from grpo_client.protocol.names import HIDDEN, Extra, TopDtype

# Every per-token array that may come beside `logprobs`, with its dtype; (N,) unless noted.
EXTRA_ARRAYS: Final[Mapping[str, type[np.generic]]] = {
    "entropy": np.float32,  # nats
    "logsumexp": np.float32,  # of the temperature-scaled logits (of symlog of them under StableMax)
    "rank": np.int32,  # 0: no token has a larger log-prob
    "top_ids": np.int32,  # (N, top_k)
    "top_logprobs": np.float32,  # (N, top_k), best first
    "token_logprobs": np.float32,  # (N, k) for the asked token_ids
    "top_tail": np.float32,  # log of the mass outside top_ids; -inf where no token is left
    "token_tail": np.float32,  # log of the mass outside the distinct ids of token_ids; -inf where no token is left
}
PER_ID: Final = frozenset({"top_ids", "top_logprobs", "token_logprobs"})
# Log-probs that may be -inf: of a token without mass, or of none. In JSON that is null, as nothing else in an ok completion.
MAY_BE_NOTHING: Final = ("top_logprobs", "token_logprobs", "top_tail", "token_tail")

_HALVED: Final = frozenset({"top_logprobs", "token_logprobs"})
_AT_ONCE: Final = 2**16  # figures: their copies stay in a core's cache
_NOTHING: Final = np.float16(-np.inf).view(np.uint16)
_LOWEST: Final = np.float16(np.finfo(np.float16).min)


def figure_dtype(name: str, top_dtype: TopDtype) -> np.dtype[Any]:
    """The dtype of an array of an answer where log-probs of best and asked tokens come as `top_dtype`."""
    if name == HIDDEN:
        return np.dtype(np.uint16)  # bfloat16, which NumPy has not, by its bits
    return np.dtype(np.float16 if top_dtype == "float16" and name in _HALVED else EXTRA_ARRAYS[name])


def rounded(values: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Figures in this dtype. To float16 a log-prob is rounded by up to one part in 2048, and stays finite where it is."""
    if dtype != np.float16 or values.dtype == np.float16:
        return values.astype(dtype, copy=False)
    with np.errstate(over="ignore"):
        halved = values.astype(np.float16)
    lost = halved.view(np.uint16) == _NOTHING  # by the bits: NumPy is slow at looking into float16
    if lost.any():
        halved[lost & (values != -np.inf)] = _LOWEST
    return halved


def put_rounded(out: npt.NDArray[Any], rows: slice | npt.NDArray[np.int64], values: npt.NDArray[Any]) -> None:
    """`out[rows] = rounded(values, out.dtype)`, without the copies: they are of a few rows at a time."""
    if out.dtype == values.dtype:
        out[rows] = values
        return
    step = max(1, _AT_ONCE * len(values) // max(1, values.size))
    for start in range(0, len(values), step):
        part = slice(start, start + step)
        few = rounded(values[part], out.dtype)
        if isinstance(rows, slice):
            out[rows][part] = few
        else:
            out[rows[part]] = few


def figure_shapes(
    extras: Set[Extra], top_k: int, asked_ids: int | None, hidden_size: int = 0
) -> dict[str, tuple[int, ...]]:
    """The arrays that are asked for, by their names in EXTRA_ARRAYS, each with its shape behind the token axis: () or (k,).

    asked_ids: how many token_ids a position; None: none anywhere. hidden_size: numbers in a hidden state.
    """
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(sorted(extras - {"tail", HIDDEN}), ())
    if HIDDEN in extras:
        shapes[HIDDEN] = (hidden_size,)
    if top_k:
        shapes["top_ids"] = shapes["top_logprobs"] = (top_k,)
        if "tail" in extras:
            shapes["top_tail"] = ()
    if asked_ids is not None:
        shapes["token_logprobs"] = (asked_ids,)
        if "tail" in extras:
            shapes["token_tail"] = ()
    return shapes
