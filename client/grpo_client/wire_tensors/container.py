"""A safetensors body to named arrays and metadata, and back, without copying a tensor.

Arrays are views into the body, and chunks that are written are views into arrays. The header is read first: its errors name the
field, its length is limited, and its offsets must cover the data without hole or overlap.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydantic_core import from_json, to_json

from grpo_client.errors import ProtocolError
from grpo_client.validation.words import as_list, as_object, clipped, describe

Arrays = dict[str, npt.NDArray[Any]]
# Bytes that are copied in well under a millisecond.
CHUNK: Final = 2**18
_LENGTH_BYTES: Final = 8  # the header's length in front of it, little-endian
_DTYPES: Final = {
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U8": np.dtype("u1"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),  # by its bits: NumPy has none
    "U16": np.dtype("<u2"),
}
_MOST: Final = 2**40  # of one dimension: beyond what memory holds, and far from what an index cannot
_CODES: Final = {dtype: code for code, dtype in _DTYPES.items()}
_WORDS: Final = {"I32": "int32", "F32": "float32", "U8": "uint8", "F16": "float16", "BF16": "bfloat16", "U16": "uint16"}


def write_container(arrays: Arrays, metadata: dict[str, str]) -> bytes:
    """Arrays and metadata as safetensors bytes."""
    return b"".join(container_chunks(arrays, metadata))


def container_chunks(
    arrays: Arrays, metadata: dict[str, str], halves: Collection[str] = ()
) -> Iterator[bytes | memoryview]:
    """The same in chunks of at most CHUNK: the header, then views into the arrays. halves: names of those that are bfloat16."""
    # the order of the safetensors library: wide types first, so that every tensor is aligned
    order = sorted(arrays, key=lambda name: (-arrays[name].itemsize, _CODES[arrays[name].dtype], name))
    flat = [np.ascontiguousarray(arrays[name]) for name in order]
    ends = np.cumsum([values.nbytes for values in flat], dtype=np.int64).tolist()
    entries = {
        name: {
            "dtype": "BF16" if name in halves else _CODES[values.dtype],
            "shape": values.shape,
            "data_offsets": [end - values.nbytes, end],
        }
        for name, values, end in zip(order, flat, ends, strict=True)
    }
    header = to_json({"__metadata__": metadata, **entries})
    header += b" " * (-len(header) % _LENGTH_BYTES)
    yield len(header).to_bytes(_LENGTH_BYTES, "little") + header
    for values in flat:
        data = values.reshape(-1).view(np.uint8).data
        for start in range(0, len(data), CHUNK):
            yield data[start : start + CHUNK]


def read_container(
    body: bytes | bytearray, known: dict[str, tuple[str, int]], max_header_bytes: int
) -> tuple[dict[str, str], Arrays]:
    """Metadata and arrays of a body whose tensors may only be those in `known`: name -> (dtype, or several
    with spaces between; dimensions).

    The arrays are views into the body, and may be written to if it may. Raises ProtocolError for an unknown name, a wrong dtype
    or number of dimensions, a header that is too long or no JSON, and data that does not match the header.
    """
    header, start = _header(body, max_header_bytes)
    metadata = as_object(header.pop("__metadata__", {}))
    if metadata is None or not all(isinstance(value, str) for value in metadata.values()):
        raise ProtocolError("__metadata__ must be an object of strings", "__metadata__", "wrong_type")
    for name, entry in header.items():
        _check_entry(name, entry, known)
    spans = {name: _span(name, entry) for name, entry in header.items()}
    end = 0
    for first, last in sorted(spans.values()):
        if first != end:
            raise _unlike("its tensors do not lie side by side")
        end = last
    if start + end != len(body):
        raise _unlike(f"they take {end} bytes and {len(body) - start} follow the header")
    return metadata, {name: _view(body, header[name], start + first) for name, (first, _) in spans.items()}


def _span(name: str, entry: dict[str, Any]) -> tuple[int, int]:
    """Where a tensor's data begins and ends, as its shape and dtype want it."""
    offsets = as_list(entry.get("data_offsets"))
    if offsets is None or len(offsets) != 2 or not all(type(n) is int and n >= 0 for n in offsets):
        raise _unlike(f"{name} has no data_offsets")
    if max(entry["shape"], default=0) > _MOST:
        raise _unlike(f"{name} has a shape of {describe(max(entry['shape']))}")
    nbytes = math.prod(entry["shape"]) * _DTYPES[entry["dtype"]].itemsize  # of Python's own integers, which do not wrap
    if offsets[1] - offsets[0] != nbytes:
        raise _unlike(f"{name} of {nbytes} bytes lies in {offsets[1] - offsets[0]}")
    return offsets[0], offsets[1]


def _view(body: bytes | bytearray, entry: dict[str, Any], start: int) -> npt.NDArray[Any]:
    values = np.frombuffer(body, _DTYPES[entry["dtype"]], math.prod(entry["shape"]), start).reshape(entry["shape"])
    return values if values.flags.aligned else values.copy()


def _unlike(why: str) -> ProtocolError:
    return ProtocolError(
        f"the body does not hold the tensors that its header announces ({why}); is it cut off?",
        code="malformed_tensors",
    )


def check_arrays(arrays: Arrays, known: dict[str, tuple[str, int]]) -> None:
    """The same rules for arrays that came in another container. Raises ProtocolError."""
    for name, values in arrays.items():
        _check_entry(name, {"dtype": _CODES.get(values.dtype), "shape": list(values.shape)}, known)


def _header(body: bytes | bytearray, limit: int) -> tuple[dict[str, Any], int]:
    """The header, and where the data begins."""
    length = int.from_bytes(body[:_LENGTH_BYTES], "little")
    if len(body) < _LENGTH_BYTES or (length <= limit and len(body) < _LENGTH_BYTES + length):
        raise ProtocolError("the body ends inside the safetensors header; is it cut off?", code="malformed_tensors")
    if length > limit:
        raise ProtocolError(
            f"the safetensors header claims {length} bytes and the limit is {limit}; is the body safetensors at all?",
            code="header_too_large",
            status=413,
        )
    try:
        header = as_object(from_json(body[_LENGTH_BYTES : _LENGTH_BYTES + length]))
    except ValueError as error:
        raise ProtocolError(f"the safetensors header is not valid JSON ({error})", code="malformed_tensors") from error
    if header is None:
        raise ProtocolError("the safetensors header must be a JSON object", code="malformed_tensors")
    return header, _LENGTH_BYTES + length


def _check_entry(name: str, entry: Any, known: dict[str, tuple[str, int]]) -> None:
    if name not in known:
        param = clipped(name)
        raise ProtocolError(
            f"{param} is not a tensor of this message; known: {', '.join(known)}", param, "unknown_field"
        )
    dtypes, dimensions = known[name]
    fields = as_object(entry) or {}
    if (got := fields.get("dtype")) not in dtypes.split():
        words = " or ".join(f"{_WORDS[dtype]} ({dtype})" for dtype in dtypes.split())
        raise ProtocolError(f"{name} must have dtype {words}, got {describe(got)}", name, "wrong_dtype")
    sizes = as_list(fields.get("shape"))
    if sizes is None or not all(type(n) is int and n >= 0 for n in sizes):
        raise ProtocolError(f"{name} must have a shape of whole numbers, got {describe(sizes)}", name, "wrong_shape")
    if len(sizes) != dimensions:
        raise ProtocolError(
            f"{name} must have {dimensions} dimension{'s' if dimensions > 1 else ''}, got {len(sizes)}",
            name,
            code="wrong_shape",
        )
