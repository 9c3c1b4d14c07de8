"""JSON lists of token ids to int32 arrays, all at once: Python touches a token only to say where a wrong one is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from grpo_client.errors import ProtocolError
from grpo_client.protocol import IntArray
from grpo_client.validation import MAX_INT32, describe


def id_arrays(lists: Sequence[object], name: Callable[[int], str]) -> list[IntArray]:
    """Lists of token ids to int32 vectors, all at once. name(i) is the path of lists[i], called only for an error."""
    for i, ids in enumerate(lists):
        if not isinstance(ids, list):
            raise ProtocolError(f"{name(i)} must be a list of token ids, got {describe(ids)}", name(i), "wrong_type")
    rows = cast("Sequence[list[object]]", lists)
    flat = list(chain.from_iterable(rows))
    if not set(map(type, flat)) <= {int}:  # type, not isinstance: true is no token id
        i, at, value = _first(rows, lambda v: type(v) is not int)
        raise ProtocolError(
            f"{name(i)}[{at}] is {describe(value)}; token ids are whole numbers", f"{name(i)}[{at}]", "wrong_type"
        )
    ids = cast("list[int]", flat)
    if ids and (min(ids) < 0 or max(ids) > MAX_INT32):
        i, at, value = _first(rows, lambda v: not 0 <= cast(int, v) <= MAX_INT32)
        raise ProtocolError(
            f"{name(i)}[{at}] is {describe(value)}; token ids are from 0 to below the vocabulary size",
            f"{name(i)}[{at}]",
            code="id_out_of_range",
            status=422,
        )
    return _split(np.array(ids, dtype=np.int32), [len(row) for row in rows])


def _first(rows: Sequence[Sequence[object]], wrong: Callable[[object], bool]) -> tuple[int, int, object]:
    return next((i, at, v) for i, row in enumerate(rows) for at, v in enumerate(row) if wrong(v))


def _split(flat: npt.NDArray[Any], lengths: Sequence[int]) -> list[npt.NDArray[Any]]:
    ends = np.cumsum(lengths, dtype=np.int64).tolist()
    return [flat[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def read_token_ids(value: object, groups: Sequence[Mapping[str, Any]]) -> list[tuple[IntArray, ...]]:
    """[group][completion][position][id], as (C, k) arrays: k as in the first row that there is."""
    _expect(value, len(groups), "token_ids", "group")
    rows: list[object] = []
    owner: list[str] = []
    shapes: list[list[int]] = []
    for k, (per_group, group) in enumerate(zip(cast("list[Any]", value), groups, strict=True)):
        _expect(per_group, len(group["completions"]), f"token_ids[{k}]", "completion")
        shapes.append([])
        for g, (per_position, ids) in enumerate(zip(per_group, group["completions"], strict=True)):
            _expect(per_position, len(ids), f"token_ids[{k}][{g}]", "completion token")
            shapes[-1].append(len(ids))
            rows += per_position
            owner += [f"token_ids[{k}][{g}][{t}]" for t in range(len(ids))]
    arrays = id_arrays(rows, lambda i: owner[i])
    width = len(arrays[0]) if arrays else 0
    for i, ids in enumerate(arrays):
        if len(ids) != width or width == 0:
            raise ProtocolError(
                f"{owner[i]} has {len(ids)} ids; give equally many, at least one, at every position of the request "
                "(repeat an id to fill up)",
                owner[i],
                code="length_mismatch",
            )
    flat = np.concatenate(arrays).reshape(-1, width) if arrays else np.empty((0, 0), np.int32)
    parts = iter(_split(flat, [length for lengths in shapes for length in lengths]))
    return [tuple(next(parts) for _ in lengths) for lengths in shapes]


def _expect(value: object, length: int, where: str, per: str) -> None:
    if not isinstance(value, list):
        raise ProtocolError(
            f"{where} must be a list with one entry per {per}, got {describe(value)}", where, "wrong_type"
        )
    if (got := len(cast("list[Any]", value))) != length:
        raise ProtocolError(f"{where} has {got} entries; give {length}, one per {per}", where, "length_mismatch")
