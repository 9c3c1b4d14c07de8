"""JSON to `ScoreResult`. The other way: `result_writer`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
from pydantic_core import from_json

from grpo_client.errors import InvalidResponse
from grpo_client.masking import Mask, filled
from grpo_client.protocol import (
    EXTRA_ARRAYS,
    MAY_BE_NOTHING,
    PER_ID,
    TOP_DTYPES,
    IntArray,
    ReferenceInfo,
    ScoreResult,
    Status,
    Usage,
    figure_dtype,
    rounded,
)
from grpo_client.validation.words import as_list

_STATUS_NAMES: Final = {status.name.lower(): status for status in Status}


def decode_result(body: bytes | bytearray) -> ScoreResult:
    """Read an answer. Raises InvalidResponse when it is none."""
    try:
        return _result(from_json(body))
    except InvalidResponse:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        words = f"{type(error).__name__}: {error}"
        raise InvalidResponse(f"this is not an answer of a grpo-server: {words:.500}") from error


def _result(message: dict[str, Any]) -> ScoreResult:
    reference = ReferenceInfo.model_validate(message["reference"], strict=True)
    groups = cast("list[dict[str, Any]]", message["groups"])
    sizes = np.array([len(g["logprobs"]) for g in groups], dtype=np.int32)
    logprobs = [row for g in groups for row in g["logprobs"]]
    lengths = np.array([len(row) for row in logprobs], dtype=np.int32)
    status = np.array([_STATUS_NAMES[name] for g in groups for name in g["status"]], dtype=np.uint8)
    if len(status) != len(lengths):
        raise InvalidResponse(f"{len(lengths)} completions came with {len(status)} statuses", "status")
    temperatures = as_list(message["temperature"])
    temperatures = [message["temperature"]] * len(groups) if temperatures is None else temperatures
    if len(temperatures) != len(groups):
        raise InvalidResponse(f"{len(groups)} groups came with {len(temperatures)} temperatures", "temperature")
    mask = _mask(groups, lengths)
    asked = lengths if mask is None else _asked(mask, lengths)
    ok = np.repeat(status == Status.OK, asked)
    top_dtype = message.get("top_dtype", "float32")
    if top_dtype not in TOP_DTYPES:
        raise InvalidResponse(f"top_dtype is {top_dtype!r:.40}, which is none that is known", "top_dtype")
    return ScoreResult(
        reference=reference,
        normalizer=reference.normalizer,
        temperature=_figures(temperatures, np.dtype(np.float32), "temperature"),
        group_sizes=sizes,
        completion_lengths=lengths,
        logprobs=_figures(list(chain.from_iterable(logprobs)), np.dtype(np.float32), "logprobs"),
        status=status,
        extras={
            name: filled(rounded(values, figure_dtype(name, top_dtype)), mask)
            for name, values in _extras(groups, asked, ok)
        },
        usage=Usage.model_validate(message["usage"], strict=True),
        prompt_ids=_ids(groups, "prompt", lambda g: [g["prompt"]]),
        completion_ids=_ids(groups, "completions", lambda g: g["completions"]),
        completion_mask=mask,
    )


def _mask(groups: Sequence[Mapping[str, Any]], lengths: IntArray) -> Mask | None:
    if not groups or "completion_mask" not in groups[0]:
        return None
    rows = [row for g in groups for row in g["completion_mask"]]
    if [len(row) for row in rows] != lengths.tolist():
        raise InvalidResponse("completion_mask does not have one entry for each log-prob", "completion_mask")
    return _figures(list(chain.from_iterable(rows)), np.dtype(np.int32), "completion_mask") == 1


def _asked(mask: Mask, lengths: IntArray) -> IntArray:
    """(S,) how many tokens of each completion were asked."""
    before = np.concatenate([[0], np.cumsum(mask, dtype=np.int64)])
    ends = np.cumsum(lengths, dtype=np.int64)
    return (before[ends] - before[ends - lengths]).astype(np.int32)


def _extras(groups: Sequence[Mapping[str, Any]], lengths: IntArray, ok: Mask) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """lengths: (S,) tokens that were asked; ok: (M,) whether the completion of each of them has a status of ok."""
    for name, dtype in EXTRA_ARRAYS.items():
        if not groups or name not in groups[0]:
            continue
        rows = [row for g in groups for row in g[name]]
        if [len(row) for row in rows] != lengths.tolist():
            raise InvalidResponse(f"{name} does not have one figure for each log-prob", name)
        positions = list(chain.from_iterable(rows))
        if name in PER_ID:
            # No position, no width: JSON cannot tell how many ids were asked for when there is nothing to score.
            width = len(positions[0]) if positions else 0
            if any(len(position) != width for position in positions):
                raise InvalidResponse(f"{name} does not have equally many ids at every position", name)
            flat = list(chain.from_iterable(positions))
            values = _figures(flat, np.dtype(dtype), name).reshape(len(positions), width)
        else:
            values = _figures(positions, np.dtype(dtype), name)
        if name in MAY_BE_NOTHING:
            values[np.isnan(values) & (ok if values.ndim == 1 else ok[:, None])] = -np.inf
        yield name, values


def _figures(flat: Sequence[Any], dtype: np.dtype[Any], name: str) -> npt.NDArray[Any]:
    """A flat list of numbers as an array; `null` becomes NaN where figures may be NaN.

    Types are looked at because NumPy would read "-0.5" and true as numbers, too.
    """
    kinds = {int, float, type(None)} if dtype == np.float32 else {int}
    if wrong := set(map(type, flat)) - kinds:
        raise InvalidResponse(
            f"{name} holds {', '.join(sorted(kind.__name__ for kind in wrong))} among its figures", name
        )
    with np.errstate(over="ignore"):  # beyond fp32 is infinite
        return np.array(flat, dtype=np.float64 if dtype == np.float32 else dtype).astype(dtype)


def _ids(
    groups: Sequence[Mapping[str, Any]], field: str, rows: Callable[[Mapping[str, Any]], list[Any]]
) -> tuple[IntArray, ...] | None:
    if not groups or field not in groups[0]:
        return None
    return tuple(_figures(ids, np.dtype(np.int32), field) for g in groups for ids in rows(g))
