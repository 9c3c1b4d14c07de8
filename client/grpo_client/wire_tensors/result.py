"""`ScoreResult` to safetensors and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from grpo_client.errors import InvalidResponse, ProtocolError
from grpo_client.masking import asked_rows, filled
from grpo_client.protocol import EXTRA_ARRAYS, HIDDEN, PER_ID, IntArray, ReferenceInfo, ScoreResult, Usage
from grpo_client.wire_tensors.container import Arrays, container_chunks, read_container

_KNOWN: Final = {
    "logprobs": ("F32", 1),
    "status": ("U8", 1),
    "temperature": ("F32", 1),
    "group_sizes": ("I32", 1),
    "completion_lengths": ("I32", 1),
    "prompt_ids": ("I32", 1),
    "prompt_lengths": ("I32", 1),
    "completion_ids": ("I32", 1),
    "completion_mask": ("U8", 1),
    **{
        name: ("I32" if dtype is np.int32 else "F32", 2 if name in PER_ID else 1)
        for name, dtype in EXTRA_ARRAYS.items()
    },
    HIDDEN: ("BF16", 2),
    # as `narrow` leaves them
    "top_ids": ("I32 U16", 2),
    "top_logprobs": ("F32 F16", 2),
    "token_logprobs": ("F32 F16", 2),
}
# An answer's header holds the reference's description beside some names; a longer one is no answer.
_MAX_HEADER_BYTES: Final = 2**20


def encode_result(result: ScoreResult) -> bytes:
    """An answer as safetensors bytes."""
    return b"".join(result_chunks(result))


def result_chunks(result: ScoreResult) -> Iterator[bytes | memoryview]:
    """The same in chunks, which are views into the result."""
    arrays: Arrays = {
        "logprobs": result.logprobs,
        "status": result.status,
        "temperature": result.temperature,
        "group_sizes": result.group_sizes,
        "completion_lengths": result.completion_lengths,
        **narrow(asked_rows(result.extras, result.completion_mask), result.reference.vocab_size),
    }
    if result.completion_mask is not None:
        arrays["completion_mask"] = result.completion_mask.view(np.uint8)
    if result.prompt_ids is not None:
        arrays["prompt_ids"] = np.concatenate([np.empty(0, np.int32), *result.prompt_ids])
        arrays["prompt_lengths"] = np.array([len(ids) for ids in result.prompt_ids], dtype=np.int32)
    if result.completion_ids is not None:
        arrays["completion_ids"] = np.concatenate([np.empty(0, np.int32), *result.completion_ids])
    reference = result.reference.model_copy(update={"normalizer": result.normalizer})
    metadata = {"reference": reference.model_dump_json(), "usage": result.usage.model_dump_json()}
    return container_chunks(arrays, metadata, halves=(HIDDEN,))


def narrow(extras: Mapping[str, npt.NDArray[Any]], vocab_size: int) -> Arrays:
    """The same with best ids in two bytes, where whoever asked wants log-probs in two and the vocabulary allows it."""
    ids, logprobs = extras.get("top_ids"), extras.get("top_logprobs")
    if ids is None or logprobs is None or logprobs.dtype != np.float16 or vocab_size > 2**16:
        return dict(extras)
    return {**extras, "top_ids": ids.astype(np.uint16)}


def decode_result(body: bytes | bytearray) -> ScoreResult:
    """Read an answer. Its arrays are views into the body if that may be written to, else into one copy of it.

    Raises InvalidResponse when it is none.
    """
    try:
        own = body if isinstance(body, bytearray) else bytearray(body)
        metadata, arrays = read_container(own, _KNOWN, _MAX_HEADER_BYTES)
        return _result(metadata, arrays)
    except InvalidResponse:
        raise
    except (ProtocolError, ValueError, KeyError) as error:
        words = f"{type(error).__name__}: {error}"
        raise InvalidResponse(f"this is not an answer of a grpo-server: {words:.500}") from error


def _result(metadata: Mapping[str, str], arrays: Arrays) -> ScoreResult:
    reference = ReferenceInfo.model_validate_json(metadata["reference"], strict=True)
    lengths, sizes = arrays["completion_lengths"], arrays["group_sizes"]
    extras = {name: arrays[name] for name in (*EXTRA_ARRAYS, HIDDEN) if name in arrays}
    if "top_ids" in extras:
        extras["top_ids"] = extras["top_ids"].astype(np.int32, copy=False)
    if (lengths < 0).any() or (sizes < 0).any():
        raise InvalidResponse("group_sizes or completion_lengths has an entry below 0", "completion_lengths")
    total = int(lengths.sum(dtype=np.int64))
    mask = arrays["completion_mask"] == 1 if "completion_mask" in arrays else None
    if mask is not None and len(mask) != total:
        raise InvalidResponse(
            f"completion_mask has {len(mask)} entries for {total} completion tokens", "completion_mask"
        )
    asked = total if mask is None else int(mask.sum())
    for name, values in {"logprobs": arrays["logprobs"], **extras}.items():
        if len(values) != (wanted := total if name == "logprobs" else asked):
            raise InvalidResponse(f"{name} has {len(values)} figures for {wanted} completion tokens", name)
    if int(sizes.sum(dtype=np.int64)) != len(lengths) or len(arrays["status"]) != len(lengths):
        raise InvalidResponse("group_sizes, completion_lengths and status do not add up", "group_sizes")
    return ScoreResult(
        reference=reference,
        normalizer=reference.normalizer,
        temperature=arrays["temperature"],
        group_sizes=sizes,
        completion_lengths=lengths,
        logprobs=arrays["logprobs"],
        status=arrays["status"],
        extras={name: filled(values, mask) for name, values in extras.items()},
        usage=Usage.model_validate_json(metadata["usage"], strict=True),
        prompt_ids=_parts(arrays["prompt_ids"], arrays["prompt_lengths"], "prompt_ids")
        if "prompt_ids" in arrays
        else None,
        completion_ids=_parts(arrays["completion_ids"], lengths, "completion_ids")
        if "completion_ids" in arrays
        else None,
        completion_mask=mask,
    )


def _parts(flat: IntArray, lengths: IntArray, name: str) -> tuple[npt.NDArray[Any], ...]:
    if (lengths < 0).any() or int(lengths.sum(dtype=np.int64)) != len(flat):
        raise InvalidResponse(f"{name} does not have the lengths that came with it", name)
    if not len(lengths):
        return ()
    return tuple(np.split(flat, np.cumsum(lengths, dtype=np.int64)[:-1]))
