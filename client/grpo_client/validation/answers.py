"""Whether an answer is one to what was asked: nothing that a server sends is a number before it has been looked at.

The decoders see to types and lengths; here the answer is held against its request. Every fault is an InvalidResponse
that names the field: a proxy that mixed up two answers, another program, or a server with a fault.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from grpo_client.errors import InvalidResponse
from grpo_client.protocol import HIDDEN, MAY_BE_NOTHING, ScoreRequest, ScoreResult, Status, figure_dtype, figure_shapes
from grpo_client.text import AnyRequest

# A log-prob is at most 0. What fp32 may add: half a unit in the last place (2**-24) of logits up to a thousand or so,
# which the temperature has divided.
_ROUNDING: Final = 1e-4
_NOT_FINITE: Final = np.uint16(0x7F80)  # the exponent of infinities and NaN in bfloat16
_NOTHING: Final = np.float16(-np.inf).view(np.uint16)


def check_answer(result: ScoreResult, request: AnyRequest) -> None:
    """Raises InvalidResponse when the answer is to another question, or holds what no server could have computed."""
    _check_shape(result, request)
    _check_echo(result, request)
    _check_extras(result, request)
    _check_figures(result)


def _check_shape(result: ScoreResult, request: AnyRequest) -> None:
    asked = [len(g.completions) for g in request.groups]
    if result.group_sizes.tolist() != asked:
        raise InvalidResponse(
            f"{sum(asked)} completions in {len(asked)} groups were sent, and {len(result)} in {len(result.group_sizes)} "
            "came back, or in other groups",
            "groups",
        )
    if isinstance(request, ScoreRequest):
        if (result.completion_lengths != request.completion_lengths).any():
            raise InvalidResponse("the scores do not have the completions' lengths", "logprobs")
        asked, told = request.completion_mask, result.completion_mask
        if (asked is None) != (told is None) or (asked is not None and told is not None and (asked != told).any()):
            raise InvalidResponse("the scores are under another mask than was sent", "completion_mask")
        return
    prompts, completions = result.prompt_ids, result.completion_ids
    if prompts is None or completions is None:
        raise InvalidResponse("text was scored, and the ids that it became did not come back", "completion_ids")
    if len(prompts) != len(asked) or [len(ids) for ids in completions] != result.completion_lengths.tolist():
        raise InvalidResponse("the ids that came back do not have the scores' lengths", "completion_ids")


def _check_echo(result: ScoreResult, request: AnyRequest) -> None:
    asked = np.array([g.temperature for g in request.groups], dtype=np.float32)
    if len(result.temperature) != len(asked) or not np.allclose(result.temperature, asked, rtol=1e-6, atol=0.0):
        raise InvalidResponse(
            f"the scores are of temperature {_short(result.temperature)}, and {_short(asked)} was asked for",
            "temperature",
        )
    if result.normalizer != request.normalizer:
        raise InvalidResponse(
            f"the scores are under {result.normalizer}, and {request.normalizer} was asked for", "normalizer"
        )


def _check_extras(result: ScoreResult, request: AnyRequest) -> None:
    asked_ids = request.asked_ids if isinstance(request, ScoreRequest) else None
    shapes = figure_shapes(request.extras, request.top_k, asked_ids, result.reference.hidden_size or 0)
    if missing := shapes.keys() - result.extras.keys():
        raise InvalidResponse(f"the answer lacks {', '.join(sorted(missing))}", "return")
    for name, shape in shapes.items():
        values = result.extras[name]
        if len(values) and values.shape != (len(result.logprobs), *shape):
            ids = f" of {shape[0]} ids" if shape else ""
            raise InvalidResponse(
                f"{name} has shape {values.shape}; {len(result.logprobs)} positions{ids} were asked for", name
            )
        if values.dtype != (dtype := figure_dtype(name, request.top_dtype)):
            raise InvalidResponse(f"{name} came as {values.dtype}, and {dtype} was asked for", name)


def _check_figures(result: ScoreResult) -> None:
    if (result.status > max(Status)).any():
        raise InvalidResponse(f"the status {int(result.status.max())} is none of this service's", "status")
    usable = np.repeat(result.status == Status.OK, result.completion_lengths)
    asked = slice(None) if result.completion_mask is None else result.completion_mask
    if result.completion_mask is not None:
        usable &= result.completion_mask
    if not np.isfinite(result.logprobs[usable]).all():
        raise InvalidResponse("a log-prob is not finite, and its completion's status is ok", "logprobs")
    ceiling = _ROUNDING * np.maximum(1.0, 1.0 / result.temperature.astype(np.float64))
    per_token = np.repeat(np.repeat(ceiling, result.group_sizes), result.completion_lengths)
    for name in ("logprobs", *MAY_BE_NOTHING):
        values = result.logprobs if name == "logprobs" else result.extras.get(name)
        if values is not None and len(values):
            _check_at_most(name, values, per_token, usable)
    for name in ("entropy", "logsumexp"):
        values = result.extras.get(name)
        if values is not None and np.isnan(values[usable]).any():
            raise InvalidResponse(f"{name} is not a number at some position, and its completion's status is ok", name)
    hidden = result.extras.get(HIDDEN)
    if hidden is not None and _any_not_finite(hidden[usable]):
        raise InvalidResponse("a hidden state is not finite, and its completion's status is ok", HIDDEN)
    for name in ("rank", "top_ids"):
        values = result.extras.get(name)
        values = None if values is None else values[asked]
        if values is not None and values.size and not 0 <= values.min() <= values.max() < result.reference.vocab_size:
            raise InvalidResponse(f"{name} is outside the vocabulary at some position", name)


def _check_at_most(
    name: str, values: npt.NDArray[Any], ceiling: npt.NDArray[Any], usable: npt.NDArray[np.bool_]
) -> None:
    """values (N,) or (N, k): none above its position's ceiling (N,), and none of a usable completion NaN."""
    rows = values.reshape(len(values), -1)
    best = _best_halves(rows) if rows.dtype == np.float16 else rows.max(axis=1, initial=-np.inf)  # NaN where any is
    if (above := best > ceiling).any():
        raise InvalidResponse(f"{name} holds {float(best[above][0]):g}; no log-prob is above 0", name)
    if np.isnan(best[usable]).any():
        raise InvalidResponse(f"{name} is not a number at some position, and its completion's status is ok", name)


def _any_not_finite(bits: npt.NDArray[Any]) -> bool:
    """Whether there is an infinity or NaN among bfloat16 by its bits."""
    return bool((np.bitwise_and(bits, _NOT_FINITE) == _NOT_FINITE).any())


def _best_halves(rows: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    """(N,) of (N, k): the largest where it is not below 0, NaN where any is, -inf elsewhere.

    By the bits, without a wider copy, for NumPy is slow at float16: as int16 what has no sign is in order, NaN last; with a
    sign, as uint16, only NaN is beyond -inf.
    """
    largest = rows.view(np.int16).max(axis=1, initial=-1)
    best = np.where(largest < 0, np.float16(-np.inf), largest.view(np.float16)).astype(np.float32)
    best[rows.view(np.uint16).max(axis=1, initial=0) > _NOTHING] = np.nan
    return best


def _short(values: npt.NDArray[Any]) -> str:
    distinct = sorted(set(values.tolist()))
    return ", ".join(f"{value:g}" for value in distinct[:3]) + (", ..." if len(distinct) > 3 else "")
