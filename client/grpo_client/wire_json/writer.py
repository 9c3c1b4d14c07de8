"""A large JSON document, written in short steps, so that other threads of the process get their turn meanwhile.

The writer is pydantic-core's, which keeps Python's lock (the GIL) for as long as it writes: seconds for an answer of some
hundred megabytes. Here it is given some thousand figures at a time, and nobody holds the whole document as Python objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
from pydantic_core import to_json

# Figures that are written in a millisecond or two.
STEP: Final = 2**13


def json_chunks(value: Any) -> Iterator[bytes]:
    """A JSON document in chunks. A figure that is not finite is null: JSON has no other word for it.

    Taken apart: objects, iterators (lists whose entries are made when they are written) and arrays (lists). `bytes` are JSON
    already; as the entry of an iterator they may be several entries with commas between. All else is written at once.
    """
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, dict):
        yield b"{"
        for i, (key, inner) in enumerate(cast("dict[str, Any]", value).items()):
            yield (b"," if i else b"") + to_json(key) + b":"
            yield from json_chunks(inner)
        yield b"}"
    elif isinstance(value, Iterator):
        yield b"["
        for i, inner in enumerate(cast("Iterator[Any]", value)):
            if i:
                yield b","
            yield from json_chunks(inner)
        yield b"]"
    elif isinstance(value, np.ndarray):
        yield from json_chunks(_slices(cast("npt.NDArray[Any]", value)))
    else:
        yield to_json(value, inf_nan_mode="null")


def json_bytes(value: Any) -> bytes:
    """The document of `json_chunks` as one."""
    return b"".join(json_chunks(value))


def entries(values: Sequence[Any]) -> bytes:
    """Entries of a list as JSON with commas between: at least one."""
    return to_json(values, inf_nan_mode="null")[1:-1]


def in_steps(rows: Iterable[Any], figures: int = 1) -> Iterator[bytes]:
    """Entries of a list, several at once. figures: in each, about."""
    batch: list[Any] = []
    most = max(1, STEP // max(1, figures))
    for row in rows:
        batch.append(row)
        if len(batch) == most:
            yield entries(batch)
            batch = []
    if batch:
        yield entries(batch)


def rows_of(*columns: npt.NDArray[Any]) -> Iterator[tuple[Any, ...]]:
    """Rows of arrays of one length as Python has them, some thousand figures at a time."""
    rows = max(1, STEP // max(1, *(values[:1].size for values in columns)))
    for start in range(0, len(columns[0]), rows):
        yield from zip(*(values[start : start + rows].tolist() for values in columns), strict=True)


def runs(weights: Iterable[int], step: int = STEP) -> Iterator[range]:
    """Neighbours that together weigh no more than a step, and each by itself that weighs more."""
    start = stop = total = 0
    for weight in weights:
        if total + weight > step and stop > start:
            yield range(start, stop)
            start, total = stop, 0
        total += weight
        stop += 1
    if stop > start:
        yield range(start, stop)


def _slices(values: npt.NDArray[Any]) -> Iterator[bytes]:
    rows = max(1, STEP // max(1, values[:1].size))
    for start in range(0, len(values), rows):
        yield entries(short_floats(values[start : start + rows]).tolist())


def short_floats(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Floats as doubles of few digits that round to the same: 0.100000001, not 0.10000000149011612.

    Nine significant digits tell any two fp32 numbers apart, and five any two of fp16; where rounding to them does not read
    back to the same bits (it does, but for subnormals and the like, where the power of ten is inexact) the widened value
    itself is kept. Values of other types are left as they are.
    """
    if values.dtype.kind != "f" or values.dtype.itemsize > 4:
        return values
    digits = 9 if values.dtype == np.float32 else 5
    wide = values.astype(np.float64)
    with np.errstate(all="ignore"):  # log10(0), infinities and NaN take the widened value below
        scale = 10.0 ** (digits - 1 - np.floor(np.log10(np.abs(wide))))
        short = np.rint(wide * scale) / scale
        return np.where((short.astype(values.dtype) == values) & (values != 0), short, wide)
