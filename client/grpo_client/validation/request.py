"""The rules that hold for a request in whatever encoding it came, each broken one an error that names field and remedy.

Three layers. What an encoding alone can get wrong is in its wire module. `check_structure` holds for every request and
needs no model: the client runs it before sending, the decoders on arrival. `check_request` needs the model's figures
and is the server's. Shape errors are 400, values that no model can answer 422, sizes beyond a limit 413.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np

from grpo_client.errors import ProtocolError
from grpo_client.protocol import EXTRAS, NORMALIZERS, Extra, Group, IntArray, Normalizer, ScoreRequest
from grpo_client.text import TextScoreRequest

MAX_INT32: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Limits:
    """What a decoder accepts at all, before anybody prices it.

    max_body_bytes: the whole body. max_header_bytes: the safetensors header. max_completions: sequences in a request.
    """

    max_body_bytes: int = 64 * 2**20
    max_header_bytes: int = 2**16
    max_completions: int = 65_536


def check_body(body: bytes, limits: Limits) -> None:
    """Refuse an empty or an overlong body before anything is parsed."""
    if not body:
        raise ProtocolError("the body is empty; send a request as JSON or safetensors", code="empty_body")
    if len(body) > limits.max_body_bytes:
        raise ProtocolError(
            f"the body has {len(body)} bytes and the limit is {limits.max_body_bytes}; "
            "cut the request into smaller ones (grpo_client does so by itself)",
            code="body_too_large",
            status=413,
        )


def check_count(completions: int, limits: Limits) -> None:
    """Refuse more sequences than the limit."""
    if completions > limits.max_completions:
        raise ProtocolError(
            f"{completions} completions in one request; the limit is {limits.max_completions}; cut it into smaller ones",
            "groups",
            code="too_many_completions",
            status=413,
        )


def read_temperature(value: object, param: str) -> float:
    """A temperature as every encoding carries it: finite, above zero, rounded to fp32 so that encodings agree."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ProtocolError(f"{param} must be a number, got {describe(value)}", param, code="wrong_type")
    try:
        with np.errstate(over="ignore", under="ignore"):
            temperature = float(np.float32(float(value)))
    except OverflowError:  # a whole number of hundreds of digits
        temperature = math.inf
    if not math.isfinite(temperature) or temperature <= 0.0:
        raise ProtocolError(
            f"{param} is {describe(value)}; it must be finite and above 0 in fp32, since logits are divided by it "
            "(for greedy sampling, score at temperature 1)",
            param,
            code="invalid_temperature",
            status=422,
        )
    return temperature


def read_normalizer(value: object) -> Normalizer:
    """One of NORMALIZERS."""
    if value not in NORMALIZERS:
        raise ProtocolError(
            f"normalizer is {describe(value)}; it must be one of {', '.join(NORMALIZERS)}",
            "normalizer",
            code="unknown_normalizer",
        )
    return value


def read_extras(value: object) -> frozenset[Extra]:
    """A list of distinct EXTRAS; what "return" holds."""
    if not isinstance(value, list):
        raise ProtocolError(f"return must be a list of names, got {describe(value)}", "return", code="wrong_type")
    names = cast("list[object]", value)
    for i, name in enumerate(names):
        if name not in EXTRAS:
            raise ProtocolError(
                f"return[{i}] is {describe(name)}; choose from {', '.join(EXTRAS)} (log-probs always come)",
                f"return[{i}]",
                code="unknown_extra",
            )
        if name in names[:i]:
            raise ProtocolError(
                f"return[{i}] names {name!r} a second time; give each once", f"return[{i}]", code="duplicate_extra"
            )
    return frozenset(cast("list[Extra]", names))


def read_top_k(value: object) -> int:
    """A whole number, 0 or more."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ProtocolError(f"top_k must be a whole number, got {describe(value)}", "top_k", code="wrong_type")
    if value < 0:
        raise ProtocolError(
            f"top_k is {describe(value)}; it must be 0 (none) or more", "top_k", code="invalid_top_k", status=422
        )
    return value


def read_fingerprint(value: object) -> str | None:
    """A string, or None."""
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise ProtocolError(
            "fingerprint must be the string that GET /v1/reference shows, or null for no pin",
            "fingerprint",
            code="invalid_fingerprint",
        )
    return value


def check_structure(req: ScoreRequest | TextScoreRequest) -> None:
    """What holds for every request, whatever the model: `check_shape`, and no negative id. Raises ProtocolError."""
    check_shape(req)
    if isinstance(req, ScoreRequest):
        _check_ids(req, MAX_INT32 + 1, "ids are 0 or more")


def check_shape(req: ScoreRequest | TextScoreRequest) -> None:
    """What holds for every request, ids left aside: those of JSON are checked as they are read. Raises ProtocolError.

    At least one group; in each at least one completion, a prompt of at least one token, a temperature above zero,
    token_ids, where given, beside every completion position and equally many everywhere.
    """
    if not req.groups:
        raise ProtocolError("groups is empty; give at least one group", "groups", code="no_groups", status=422)
    read_normalizer(req.normalizer)
    read_extras(sorted(req.extras))
    read_top_k(req.top_k)
    seen: set[tuple[type, float]] = set()  # most requests have one temperature for all their groups
    for k, group in enumerate(req.groups):
        if (kind := (type(group.temperature), group.temperature)) not in seen:
            read_temperature(group.temperature, f"groups[{k}].temperature")
            seen.add(kind)
        if not group.completions:
            raise ProtocolError(
                f"groups[{k}].completions is empty; give at least one completion (itself possibly empty)",
                f"groups[{k}].completions",
                code="no_completions",
                status=422,
            )
        if len(group.prompt) == 0:
            raise ProtocolError(
                f"groups[{k}].prompt is empty, so nothing predicts the first completion token; prepend the BOS token",
                f"groups[{k}].prompt",
                code="empty_prompt",
                status=422,
            )
    if isinstance(req, ScoreRequest):
        _check_token_ids(req.groups)


def check_request(req: ScoreRequest, *, vocab_size: int, max_length: int, max_top_k: int) -> None:
    """What the model allows: ids in its vocabulary, lengths within its context, no more extra ids than the server gives.

    vocab_size, max_length (tokens of prompt and completion together) and max_top_k (of top_k and of ids per position
    in token_ids): the server's. Raises ProtocolError: 422 for ids and top_k, 413 for lengths.
    """
    most_ids = max((t.shape[1] for g in req.groups for t in g.token_ids or () if t.ndim == 2), default=0)
    for value, param in ((req.top_k, "top_k"), (most_ids, "token_ids")):
        if value > max_top_k:
            raise ProtocolError(
                f"{param} asks for {value} ids a position; this server gives at most {max_top_k}",
                param,
                code="top_k_too_large",
                status=422,
            )
    if req.top_k > vocab_size:
        raise ProtocolError(
            f"top_k is {req.top_k} and the vocabulary has {vocab_size} ids", "top_k", code="top_k_too_large", status=422
        )
    for k, group in enumerate(req.groups):
        room = max_length - len(group.prompt)
        if room >= 0 and max(map(len, group.completions), default=0) <= room:
            continue
        for g, completion in enumerate(group.completions):
            if (total := len(group.prompt) + len(completion)) > max_length:
                raise ProtocolError(
                    f"groups[{k}]: prompt ({len(group.prompt)} tokens) and completions[{g}] ({len(completion)}) make "
                    f"{total} tokens; the model's context holds {max_length}; shorten one of them",
                    f"groups[{k}].completions[{g}]",
                    code="context_length_exceeded",
                    status=413,
                )
    _check_ids(req, vocab_size, f"the vocabulary has {vocab_size} ids, 0 to {vocab_size - 1}")


def _check_ids(req: ScoreRequest, end: int, remedy: str) -> None:
    """All ids in [0, end)."""
    vectors = [ids for group in req.groups for ids in (group.prompt, *group.completions)]
    tables = [ids.ravel() for group in req.groups for ids in group.token_ids or ()]
    everything = np.concatenate(vectors + tables)  # one pass; names matter only to the error
    if everything.min() >= 0 and everything.max() < end:
        return
    for param, ids in _named_ids(req):
        if (wrong := np.flatnonzero((ids < 0) | (ids >= end))).size:
            where = int(wrong[0])
            raise ProtocolError(
                f"{param} holds the id {int(ids[where])} at position {where}; {remedy}",
                param,
                code="id_out_of_range",
                status=422,
            )


def _named_ids(req: ScoreRequest) -> Iterator[tuple[str, IntArray]]:
    for k, group in enumerate(req.groups):
        yield f"groups[{k}].prompt", group.prompt
        for g, ids in enumerate(group.completions):
            yield f"groups[{k}].completions[{g}]", ids
        for g, ids in enumerate(group.token_ids or ()):
            yield f"token_ids[{k}][{g}]", ids.ravel()


def _check_token_ids(groups: Sequence[Group]) -> None:
    given = [g.token_ids is not None for g in groups]
    if not any(given):
        return
    if not all(given):
        k = given.index(False)
        raise ProtocolError(
            f"token_ids is missing for groups[{k}]; give it for every group or for none",
            f"token_ids[{k}]",
            code="length_mismatch",
        )
    width: int | None = None
    for k, group in enumerate(groups):
        lists = group.token_ids or ()
        if len(lists) != len(group.completions):
            raise ProtocolError(
                f"token_ids[{k}] has {len(lists)} entries for {len(group.completions)} completions; give one for each",
                f"token_ids[{k}]",
                code="length_mismatch",
            )
        for g, (ids, completion) in enumerate(zip(lists, group.completions, strict=True)):
            param = f"token_ids[{k}][{g}]"
            if ids.ndim != 2 or len(ids) != len(completion):
                raise ProtocolError(
                    f"{param} has shape {ids.shape}; it must have one row of ids for each of the "
                    f"{len(completion)} completion tokens",
                    param,
                    code="length_mismatch",
                )
            if len(ids) == 0:
                continue
            width = ids.shape[1] if width is None else width
            if ids.shape[1] != width or width == 0:
                raise ProtocolError(
                    f"{param} has {ids.shape[1]} ids a position; give equally many, at least one, at every position "
                    "of the request (repeat an id to fill up)",
                    param,
                    code="length_mismatch",
                )


def as_object(value: object) -> dict[str, Any] | None:
    """The value if it is a JSON object, else None."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def as_list(value: object) -> list[Any] | None:
    """The value if it is a JSON list, else None."""
    return cast("list[Any]", value) if isinstance(value, list) else None


def clipped(name: str) -> str:
    """A name that somebody sent, short enough to be given back in an error."""
    return name if len(name) <= 60 else f"{name[:60]}..."


def describe(value: Any) -> str:
    """A JSON reader's words for a value that should have been something else."""
    if isinstance(value, str):
        value = value[:40]  # the repr of 60 MB takes its time
    words = (
        (dict, "an object"),
        (list, "a list"),
        (np.ndarray, "a list"),
        (bool, "true or false"),
        (type(None), "null"),
    )
    return next((word for kind, word in words if isinstance(value, kind)), f"{value!r:.40}")
