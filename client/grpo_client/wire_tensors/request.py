"""`ScoreRequest` to safetensors and back. What holds in every encoding is checked in `validation`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from grpo_client.errors import ProtocolError
from grpo_client.masking import Mask
from grpo_client.protocol import EXTRAS, HIDDEN, Group, IntArray, ScoreRequest
from grpo_client.validation.fields import (
    read_extras,
    read_fingerprint,
    read_model,
    read_normalizer,
    read_temperature,
    read_top_dtype,
    read_top_k,
)
from grpo_client.validation.limits import Limits, check_body, check_count
from grpo_client.validation.request import check_structure
from grpo_client.validation.words import clipped
from grpo_client.wire_tensors.container import Arrays, check_arrays, read_container, write_container

_KNOWN: Final = {
    "prompt_ids": ("I32", 1),
    "prompt_lengths": ("I32", 1),
    "completion_ids": ("I32", 1),
    "completion_lengths": ("I32", 1),
    "group_sizes": ("I32", 1),
    "temperature": ("F32", 1),
    "token_ids": ("I32", 2),
    "completion_mask": ("U8", 1),
}
_REQUIRED: Final = ("prompt_ids", "prompt_lengths", "completion_ids", "completion_lengths", "group_sizes")
# "format" is what safetensors writers of the frameworks add by themselves.
_METADATA: Final = ("normalizer", "return", "top_k", "fingerprint", "top_dtype", "model", "format")


def encode_request(req: ScoreRequest) -> bytes:
    """A request as safetensors bytes."""
    arrays: Arrays = {
        "prompt_ids": _joined([g.prompt for g in req.groups]),
        "prompt_lengths": np.array([len(g.prompt) for g in req.groups], dtype=np.int32),
        "completion_ids": _joined([c for g in req.groups for c in g.completions]),
        "completion_lengths": req.completion_lengths,
        "group_sizes": req.group_sizes,
        "temperature": np.array([g.temperature for g in req.groups], dtype=np.float32),
    }
    if any(g.token_ids is not None for g in req.groups):
        rows = [ids for g in req.groups for ids in g.token_ids or ()]
        width = max((ids.shape[1] for ids in rows), default=0)
        arrays["token_ids"] = np.concatenate([np.empty((0, width), np.int32), *(ids for ids in rows if len(ids))])
    if (mask := req.completion_mask) is not None:
        arrays["completion_mask"] = mask.view(np.uint8)
    metadata = {
        "normalizer": req.normalizer,
        "return": ",".join(name for name in (*EXTRAS, HIDDEN) if name in req.extras),
        "top_k": str(req.top_k),
    }
    if req.fingerprint is not None:
        metadata["fingerprint"] = req.fingerprint
    if req.model is not None:
        metadata["model"] = req.model
    if req.top_dtype != "float32":
        metadata["top_dtype"] = req.top_dtype
    return write_container(arrays, metadata)


def _joined(arrays: Sequence[IntArray]) -> IntArray:
    return np.concatenate([np.empty(0, np.int32), *arrays], dtype=np.int32)


def decode_request(body: bytes, limits: Limits | None = None) -> ScoreRequest:
    """Read and check a request. Its arrays are views into the body.

    Raises ProtocolError with the tensor's or the metadata field's name. What only the model knows (vocabulary, context)
    is `check_request`'s.
    """
    limits = limits or Limits()
    check_body(body, limits)
    metadata, arrays = read_container(body, _KNOWN, limits.max_header_bytes)
    return _request(arrays, metadata, limits)


def request_of_arrays(arrays: Arrays, metadata: Mapping[str, str], limits: Limits | None = None) -> ScoreRequest:
    """The same for tensors and metadata that came in another container, by their names here. Raises ProtocolError."""
    check_arrays(arrays, _KNOWN)
    return _request(arrays, metadata, limits or Limits())


def _request(arrays: Arrays, metadata: Mapping[str, str], limits: Limits) -> ScoreRequest:
    for name in metadata:
        if name not in _METADATA:
            param = clipped(name)
            raise ProtocolError(
                f"{param} is not a metadata field; known: {', '.join(_METADATA[:-1])}", param, "unknown_field"
            )
    for name in _REQUIRED:
        if name not in arrays:
            raise ProtocolError(f"the tensor {name} is missing; send int32, one dimension", name, "missing_field")
    check_count(len(arrays["completion_lengths"]), limits)
    check_count(len(arrays["group_sizes"]), limits)  # each group has a completion at least
    extras = metadata.get("return", "")
    req = ScoreRequest(
        groups=_groups(arrays),
        normalizer=read_normalizer(metadata.get("normalizer", "softmax")),
        extras=read_extras(extras.split(",") if extras else []),
        top_k=_top_k(metadata.get("top_k", "0")),
        fingerprint=read_fingerprint(metadata.get("fingerprint")),
        top_dtype=read_top_dtype(metadata.get("top_dtype", "float32")),
        model=read_model(metadata.get("model")),
    )
    check_structure(req)
    return req


def _top_k(text: str) -> int:
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 10):
        raise ProtocolError(f"top_k is {text!r:.40}; write it as a whole number", "top_k", "wrong_type")
    return read_top_k(int(text))


def _groups(arrays: Arrays) -> tuple[Group, ...]:
    sizes, prompt_lengths = arrays["group_sizes"], arrays["prompt_lengths"]
    lengths = arrays["completion_lengths"]
    if len(prompt_lengths) != len(sizes):
        raise ProtocolError(
            f"prompt_lengths has {len(prompt_lengths)} entries and group_sizes {len(sizes)}; give one per group",
            "prompt_lengths",
            code="length_mismatch",
        )
    temperature = arrays.get("temperature", np.ones(len(sizes), np.float32))
    if len(temperature) != len(sizes):
        raise ProtocolError(
            f"temperature has {len(temperature)} entries for {len(sizes)} groups; give one per group",
            "temperature",
            code="length_mismatch",
        )
    prompts = _cut(arrays["prompt_ids"], prompt_lengths, "prompt_lengths", "prompt_ids")
    completions = iter(_cut(arrays["completion_ids"], lengths, "completion_lengths", "completion_ids"))
    _check_sum(sizes, len(lengths), "group_sizes", "entries of completion_lengths")
    wanted = (
        iter(_cut(arrays["token_ids"], lengths, "completion_lengths", "token_ids")) if "token_ids" in arrays else None
    )
    masks = iter(_masks(arrays["completion_mask"], lengths)) if "completion_mask" in arrays else None
    return tuple(
        Group(
            prompt=prompt,
            completions=tuple(next(completions) for _ in range(size)),
            temperature=read_temperature(temp, f"temperature[{k}]"),
            token_ids=None if wanted is None else tuple(next(wanted) for _ in range(size)),
            completion_mask=None if masks is None else tuple(next(masks) for _ in range(size)),
        )
        for k, (prompt, size, temp) in enumerate(zip(prompts, sizes.tolist(), temperature.tolist(), strict=True))
    )


def _masks(flat: npt.NDArray[np.uint8], lengths: IntArray) -> list[Mask]:
    if (wrong := np.flatnonzero(flat > 1)).size:
        name = f"completion_mask[{wrong[0]}]"
        raise ProtocolError(
            f"{name} is {flat[wrong[0]]}; a mask is 1 where a token is asked and 0 elsewhere", name, code="wrong_type"
        )
    return _cut(flat.astype(np.bool_), lengths, "completion_lengths", "completion_mask")


def _cut(flat: npt.NDArray[Any], lengths: IntArray, lengths_name: str, name: str) -> list[npt.NDArray[Any]]:
    """`flat` in parts of the given lengths, which must add up."""
    _check_sum(lengths, len(flat), lengths_name, f"rows of {name}")
    ends: list[int] = np.cumsum(lengths, dtype=np.int64).tolist()
    return [flat[start:end] for start, end in pairwise([0, *ends])]


def _check_sum(lengths: IntArray, total: int, name: str, of: str) -> None:
    if (lengths < 0).any():
        k = int(np.flatnonzero(lengths < 0)[0])
        raise ProtocolError(
            f"{name}[{k}] is {int(lengths[k])}; lengths are 0 or more", f"{name}[{k}]", "negative_length", status=422
        )
    if (added := int(lengths.sum(dtype=np.int64))) != total:
        raise ProtocolError(f"{name} adds up to {added}, but there are {total} {of}", name, "length_mismatch")
