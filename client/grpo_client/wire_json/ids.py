"""JSON lists of token ids to int32 arrays, all at once: Python touches a token only to say where a wrong one is."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt

from grpo_client.errors import ProtocolError
from grpo_client.masking import PAD
from grpo_client.protocol import IntArray
from grpo_client.validation.request import MAX_INT32
from grpo_client.validation.words import describe

# Ids that are checked and converted at once: in C, which keeps Python's lock meanwhile, for a millisecond or two.
_BATCH: Final = 2**14


def id_arrays(lists: Sequence[object], name: Callable[[int], str]) -> list[IntArray]:
    """Lists of token ids, or arrays as `reader` makes them, to int32 vectors. name(i) is the path of lists[i], called only
    for an error."""
    return [ids for flat, lengths in _batches(lists, name) for ids in _split(flat, lengths)]


def _batches(
    lists: Sequence[object], name: Callable[[int], str], lowest: int = 0
) -> Iterator[tuple[IntArray, list[int]]]:
    """The ids of so many lists at a time as one vector, with their lengths. lowest: PAD where that may stand for no id."""
    batch: list[list[object]] = []
    start = waiting = 0
    for i, ids in enumerate(lists):
        if isinstance(ids, np.ndarray):
            yield _converted(batch, start, name, lowest)
            values = cast("npt.NDArray[np.int64]", ids)
            yield _in_range(values, [len(values)], i, name, lowest), [len(values)]
            batch, start, waiting = [], i + 1, 0
        elif isinstance(ids, list):
            row = cast("list[object]", ids)
            batch.append(row)
            waiting += len(row) + 1
            if waiting > _BATCH:
                yield _converted(batch, start, name, lowest)
                batch, start, waiting = [], i + 1, 0
        else:
            yield _converted(batch, start, name, lowest)
            raise ProtocolError(f"{name(i)} must be a list of token ids, got {describe(ids)}", name(i), "wrong_type")
    yield _converted(batch, start, name, lowest)


def _converted(
    rows: Sequence[list[object]], start: int, name: Callable[[int], str], lowest: int
) -> tuple[IntArray, list[int]]:
    """start: the place of rows[0] among all lists."""
    flat = list(chain.from_iterable(rows))
    if not set(map(type, flat)) <= {int}:  # type, not isinstance: true is no token id
        i, at, value = _first(rows, lambda v: type(v) is not int)
        where = f"{name(start + i)}[{at}]"
        raise ProtocolError(f"{where} is {describe(value)}; token ids are whole numbers", where, "wrong_type")
    try:
        ids = np.array(cast("list[int]", flat), dtype=np.int64)
    except OverflowError:
        i, at, value = _first(rows, lambda v: not lowest <= cast(int, v) <= MAX_INT32)
        raise _out_of_range(f"{name(start + i)}[{at}]", value, lowest) from None
    lengths = [len(row) for row in rows]
    return _in_range(ids, lengths, start, name, lowest), lengths


def _in_range(
    ids: npt.NDArray[np.int64], lengths: Sequence[int], start: int, name: Callable[[int], str], lowest: int
) -> IntArray:
    if len(ids) and not lowest <= int(ids.min()) <= int(ids.max()) <= MAX_INT32:
        wrong = int(np.flatnonzero((ids < lowest) | (ids > MAX_INT32))[0])
        ends = np.cumsum(lengths, dtype=np.int64)
        i = int(np.searchsorted(ends, wrong, side="right"))
        at = wrong - (int(ends[i - 1]) if i else 0)
        raise _out_of_range(f"{name(start + i)}[{at}]", int(ids[wrong]), lowest)
    return ids.astype(np.int32)


def _out_of_range(where: str, value: object, lowest: int) -> ProtocolError:
    none = "" if lowest == 0 else f", and {lowest} is none"
    return ProtocolError(
        f"{where} is {describe(value)}; token ids are from 0 to below the vocabulary size{none}",
        where,
        code="id_out_of_range",
        status=422,
    )


def _first(rows: Sequence[Sequence[object]], wrong: Callable[[object], bool]) -> tuple[int, int, object]:
    return next((i, at, v) for i, row in enumerate(rows) for at, v in enumerate(row) if wrong(v))


def _split(flat: npt.NDArray[Any], lengths: Sequence[int]) -> list[npt.NDArray[Any]]:
    ends = np.cumsum(lengths, dtype=np.int64).tolist()
    return [flat[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def read_token_ids(value: object, groups: Sequence[Mapping[str, Any]]) -> list[tuple[IntArray, ...]]:
    """[group][completion][position][id], as (C, k) arrays: k as in the first row that there is; PAD is no id."""
    _expect(value, len(groups), "token_ids", "group")
    rows: list[object] = []
    shapes: list[list[int]] = []
    begins: list[tuple[int, int, int]] = []  # (place of its first row, group, completion)
    for k, (per_group, group) in enumerate(zip(cast("list[Any]", value), groups, strict=True)):
        _expect(per_group, len(group["completions"]), f"token_ids[{k}]", "completion")
        shapes.append([])
        for g, (per_position, ids) in enumerate(zip(per_group, group["completions"], strict=True)):
            _expect(per_position, len(ids), f"token_ids[{k}][{g}]", "completion token")
            shapes[-1].append(len(ids))
            begins.append((len(rows), k, g))
            rows += per_position

    def owner(i: int) -> str:
        first, k, g = begins[bisect_right(begins, i, key=lambda begin: begin[0]) - 1]
        return f"token_ids[{k}][{g}][{i - first}]"

    flats: list[IntArray] = []
    width = place = 0
    for flat, lengths in _batches(rows, owner, PAD):
        for length in lengths:
            width = width or length
            if length != width or width == 0:
                raise ProtocolError(
                    f"{owner(place)} has {length} ids; give equally many, at least one, at every position of the request "
                    "(fill up with -1)",
                    owner(place),
                    code="length_mismatch",
                )
            place += 1
        flats.append(flat)
    table = np.concatenate(flats).reshape(-1, width) if width else np.empty((0, 0), np.int32)
    parts = iter(_split(table, [length for lengths in shapes for length in lengths]))
    return [tuple(next(parts) for _ in lengths) for lengths in shapes]


def _expect(value: object, length: int, where: str, per: str) -> None:
    if not isinstance(value, list):
        raise ProtocolError(
            f"{where} must be a list with one entry per {per}, got {describe(value)}", where, "wrong_type"
        )
    if (got := len(cast("list[Any]", value))) != length:
        raise ProtocolError(f"{where} has {got} entries; give {length}, one per {per}", where, "length_mismatch")
