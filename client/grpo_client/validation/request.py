"""The rules that hold for a request in whatever encoding it came, each broken one an error that names field and remedy.

Three layers. What an encoding alone can get wrong is in its wire module. `check_structure` holds for every request and
needs no model: the client runs it before sending, the decoders on arrival. `check_request` needs the model's figures
and is the server's. Shape errors are 400, values that no model can answer 422, sizes beyond a limit 413.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from grpo_client.errors import ProtocolError
from grpo_client.masking import PAD
from grpo_client.protocol import Group, IntArray, ScoreRequest
from grpo_client.text import TextScoreRequest
from grpo_client.validation.fields import (
    read_extras,
    read_normalizer,
    read_temperature,
    read_top_dtype,
    read_top_k,
)

MAX_INT32: Final = 2**31 - 1


def check_structure(req: ScoreRequest | TextScoreRequest) -> None:
    """What holds for every request, whatever the model: `check_shape`, and no negative id. Raises ProtocolError."""
    check_shape(req)
    if isinstance(req, ScoreRequest):
        _check_ids(req, MAX_INT32 + 1, "ids are 0 or more")


def check_shape(req: ScoreRequest | TextScoreRequest) -> None:
    """What holds for every request, ids left aside: those of JSON are checked as they are read. Raises ProtocolError.

    At least one group; in each at least one completion, a prompt of at least one token, a temperature above zero,
    token_ids, where given, beside every completion position and equally many everywhere; tail only beside top_k or token_ids;
    completion_mask, where given, over
    every completion.
    """
    if not req.groups:
        raise ProtocolError("groups is empty; give at least one group", "groups", code="no_groups", status=422)
    read_normalizer(req.normalizer)
    read_extras(sorted(req.extras))
    read_top_k(req.top_k)
    read_top_dtype(req.top_dtype)
    if "tail" in req.extras and not req.top_k and (not isinstance(req, ScoreRequest) or req.asked_ids is None):
        raise ProtocolError(
            "return names tail, the mass outside top_k and outside token_ids, and neither is asked for; ask for one of them",
            "return",
            code="tail_of_nothing",
            status=422,
        )
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
        _check_masks(req.groups)


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
    """All ids in [0, end), or PAD where ids are asked."""
    vectors = [ids for group in req.groups for ids in (group.prompt, *group.completions)]
    tables = [ids.ravel() for group in req.groups for ids in group.token_ids or ()]
    everything = np.concatenate(vectors)  # one pass; names matter only to the error
    if (
        everything.min() >= 0
        and everything.max() < end
        and all(int(ids.min(initial=0)) >= PAD and int(ids.max(initial=0)) < end for ids in tables)
    ):
        return
    for param, ids, lowest in _named_ids(req):
        if (wrong := np.flatnonzero((ids < lowest) | (ids >= end))).size:
            where = int(wrong[0])
            none = "" if lowest == 0 else f", and {lowest} is none"
            raise ProtocolError(
                f"{param} holds the id {int(ids[where])} at position {where}; {remedy}{none}",
                param,
                code="id_out_of_range",
                status=422,
            )


def _named_ids(req: ScoreRequest) -> Iterator[tuple[str, IntArray, int]]:
    """With the lowest that each may hold."""
    for k, group in enumerate(req.groups):
        yield f"groups[{k}].prompt", group.prompt, 0
        for g, ids in enumerate(group.completions):
            yield f"groups[{k}].completions[{g}]", ids, 0
        for g, ids in enumerate(group.token_ids or ()):
            yield f"token_ids[{k}][{g}]", ids.ravel(), PAD


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
                    "of the request (fill up with -1)",
                    param,
                    code="length_mismatch",
                )


def _check_masks(groups: Sequence[Group]) -> None:
    for k, group in enumerate(groups):
        if (masks := group.completion_mask) is None:
            continue
        for g, completion in enumerate(group.completions):
            if len(masks) != len(group.completions) or len(masks[g]) != len(completion):
                raise ProtocolError(
                    f"completion_mask[{k}][{g}] must have one entry for each of the {len(completion)} completion tokens, "
                    f"and completion_mask[{k}] one for each of the {len(group.completions)} completions",
                    f"completion_mask[{k}][{g}]",
                    code="length_mismatch",
                )
