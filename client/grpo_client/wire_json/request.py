"""`ScoreRequest` and `TextScoreRequest` to JSON and back. What holds in every encoding is checked in `validation`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Final, cast

import numpy as np
from pydantic_core import to_json

from grpo_client.arguments.masks import read_completion_mask
from grpo_client.errors import ProtocolError
from grpo_client.protocol import EXTRAS, HIDDEN, Group, ScoreRequest
from grpo_client.text import AnyRequest, ChatMessage, TextGroup, TextScoreRequest
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
from grpo_client.validation.request import check_shape
from grpo_client.validation.words import as_list, as_object, clipped, describe
from grpo_client.wire_json.ids import id_arrays, read_token_ids
from grpo_client.wire_json.reader import read_json

_REQUEST_FIELDS: Final = (
    "groups",
    "temperature",
    "normalizer",
    "return",
    "top_k",
    "token_ids",
    "completion_mask",
    "fingerprint",
    "top_dtype",
    "model",
)
_GROUP_FIELDS: Final = ("prompt", "messages", "completions")


def encode_request(req: AnyRequest) -> bytes:
    """A request as JSON bytes."""
    temperatures = [g.temperature for g in req.groups]
    message: dict[str, Any] = {
        "groups": [_group_out(g) for g in req.groups],
        "temperature": temperatures[0] if len(set(temperatures)) == 1 else temperatures,
        "normalizer": req.normalizer,
        "return": [name for name in (*EXTRAS, HIDDEN) if name in req.extras],
        "top_k": req.top_k,
        "fingerprint": req.fingerprint,
    }
    if req.model is not None:
        message["model"] = req.model
    if req.top_dtype != "float32":
        message["top_dtype"] = req.top_dtype
    if isinstance(req, ScoreRequest) and any(g.token_ids is not None for g in req.groups):
        message["token_ids"] = [
            None if g.token_ids is None else [ids.tolist() for ids in g.token_ids] for g in req.groups
        ]
    if isinstance(req, ScoreRequest) and any(g.completion_mask is not None for g in req.groups):
        message["completion_mask"] = [_mask_out(g) for g in req.groups]
    return to_json(message, inf_nan_mode="constants")


def _mask_out(group: Group) -> list[list[int]]:
    if group.completion_mask is None:
        return [[1] * len(c) for c in group.completions]
    return [mask.astype(int).tolist() for mask in group.completion_mask]


def _group_out(group: Group | TextGroup) -> dict[str, Any]:
    if isinstance(group, Group):
        return {"prompt": group.prompt.tolist(), "completions": [c.tolist() for c in group.completions]}
    prompt = {"prompt": group.prompt} if isinstance(group.prompt, str) else {"messages": group.prompt}
    return {**prompt, "completions": group.completions}


def decode_request(body: bytes, limits: Limits | None = None) -> AnyRequest:
    """Read and check a request. Text prompts come back as `TextScoreRequest`, for the server's tokenizer.

    Raises ProtocolError with the field's path. What only the model knows (vocabulary, context) is `check_request`'s.
    """
    limits = limits or Limits()
    check_body(body, limits)
    return request_from_object(parse_object(body), limits)


def request_from_object(message: Mapping[str, Any], limits: Limits) -> AnyRequest:
    """`decode_request` for a message that is already parsed."""
    _only_fields(message, _REQUEST_FIELDS, "")
    groups = _groups(message, limits)
    check_count(sum(len(g["completions"]) for g in groups), limits)
    temperatures = _temperatures(message.get("temperature", 1.0), len(groups))
    common: dict[str, Any] = {
        "normalizer": read_normalizer(message.get("normalizer", "softmax")),
        "extras": read_extras(message.get("return", [])),
        "top_k": read_top_k(message.get("top_k", 0)),
        "fingerprint": read_fingerprint(message.get("fingerprint")),
        "top_dtype": read_top_dtype(message.get("top_dtype", "float32")),
        "model": read_model(message.get("model")),
    }
    token_ids, mask = message.get("token_ids"), message.get("completion_mask")
    req: AnyRequest
    if any(_is_text(g) for g in groups):
        for name, value in (("token_ids", token_ids), ("completion_mask", mask)):
            if value is not None:
                raise ProtocolError(
                    f"{name} needs completions given as ids, since positions of text are not known before tokenization; "
                    f"tokenize first, or leave {name} out",
                    name,
                    code=f"text_{name}",
                )
        req = TextScoreRequest(
            tuple(_text_group(g, k, t) for k, (g, t) in enumerate(zip(groups, temperatures, strict=True))), **common
        )
    else:
        req = ScoreRequest(_id_groups(groups, temperatures, token_ids, mask), **common)
    check_shape(req)
    return req


def parse_object(body: bytes) -> dict[str, Any]:
    """A body that must be one JSON object. Raises ProtocolError."""
    parsed = read_json(body)
    if (message := as_object(parsed)) is None:
        raise ProtocolError(f"the body must be a JSON object, got {describe(parsed)}", code="wrong_type")
    return message


def _only_fields(message: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for name in message:
        if name not in known:
            param = f"{where}{clipped(name)}"
            raise ProtocolError(f"{param} is not a field; known here: {', '.join(known)}", param, "unknown_field")


def _groups(message: Mapping[str, Any], limits: Limits) -> list[dict[str, Any]]:
    """The groups, each an object with `completions` and either `prompt` or `messages`."""
    if "groups" not in message:
        raise ProtocolError(
            'groups is missing; send {"groups": [{"prompt": [...], "completions": [[...]]}]}', "groups", "missing_field"
        )
    if (entries := as_list(message["groups"])) is None:
        raise ProtocolError(
            f"groups must be a list of objects, got {describe(message['groups'])}", "groups", "wrong_type"
        )
    check_count(len(entries), limits)  # each group has a completion at least
    groups: list[dict[str, Any]] = []
    for k, entry in enumerate(entries):
        where = f"groups[{k}]"
        if (group := as_object(entry)) is None:
            raise ProtocolError(f"{where} must be an object, got {describe(entry)}", where, "wrong_type")
        _only_fields(group, _GROUP_FIELDS, f"{where}.")
        if ("prompt" in group) == ("messages" in group):
            raise ProtocolError(f"{where} must have either prompt or messages", f"{where}.prompt", "missing_field")
        if as_list(group.get("completions")) is None:
            raise ProtocolError(
                f"{where}.completions must be a list with one entry per completion, "
                f"got {describe(group.get('completions'))}",
                f"{where}.completions",
                "wrong_type" if "completions" in group else "missing_field",
            )
        groups.append(group)
    return groups


def _temperatures(value: object, groups: int) -> list[float]:
    if isinstance(value, np.ndarray):  # whole numbers, so many that they came as one array
        value = cast("list[object]", value.tolist())
    if not isinstance(value, list):
        return [read_temperature(value, "temperature")] * groups
    values = cast("list[object]", value)
    if len(values) != groups:
        raise ProtocolError(
            f"temperature has {len(values)} entries for {groups} groups; give one number, or one per group",
            "temperature",
            code="length_mismatch",
        )
    return [read_temperature(t, f"temperature[{k}]") for k, t in enumerate(values)]


def _is_text(group: Mapping[str, Any]) -> bool:
    return (
        "messages" in group or isinstance(group["prompt"], str) or any(isinstance(c, str) for c in group["completions"])
    )


def _text_group(group: Mapping[str, Any], k: int, temperature: float) -> TextGroup:
    where = f"groups[{k}]"
    for g, completion in enumerate(group["completions"]):
        if not isinstance(completion, str):
            raise ProtocolError(
                f"{where}.completions[{g}] must be a string, got {describe(completion)}; a request is either all text "
                "or all ids",
                f"{where}.completions[{g}]",
                code="mixed_text_and_ids",
            )
    completions = tuple(cast("list[str]", group["completions"]))
    if "messages" in group:
        return TextGroup(_messages(group["messages"], f"{where}.messages"), completions, temperature)
    if not isinstance(prompt := group["prompt"], str):
        raise ProtocolError(
            f"{where}.prompt must be a string, got {describe(prompt)}; a request is either all text or all ids",
            f"{where}.prompt",
            code="mixed_text_and_ids",
        )
    return TextGroup(prompt, completions, temperature)


def _messages(value: object, where: str) -> tuple[ChatMessage, ...]:
    if not (messages := as_list(value)):
        raise ProtocolError(
            f'{where} must be a list of at least one {{"role": ..., "content": ...}}, got {describe(value)}',
            where,
            code="wrong_type",
        )
    for i, entry in enumerate(messages):
        message = as_object(entry)
        if message is None or not isinstance(message.get("role"), str) or "content" not in message:
            raise ProtocolError(
                f'{where}[{i}] must be an object with "role" (a string) and "content"', f"{where}[{i}]", "wrong_type"
            )
    return tuple(messages)


def _id_groups(
    groups: Sequence[Mapping[str, Any]], temperatures: Sequence[float], token_ids: object, mask: object
) -> tuple[Group, ...]:
    owner = [(k, g) for k, group in enumerate(groups) for g in range(len(group["completions"]))]
    prompts = iter(id_arrays([g["prompt"] for g in groups], lambda k: f"groups[{k}].prompt"))
    completions = iter(
        id_arrays(
            list(chain.from_iterable(g["completions"] for g in groups)),
            lambda i: f"groups[{owner[i][0]}].completions[{owner[i][1]}]",
        )
    )
    wanted = read_token_ids(token_ids, groups) if token_ids is not None else [None] * len(groups)
    made = [
        Group(next(prompts), tuple(next(completions) for _ in group["completions"]), temperature, ids)
        for group, temperature, ids in zip(groups, temperatures, wanted, strict=True)
    ]
    if mask is None:
        return tuple(made)
    masks = read_completion_mask(mask, [list(map(len, group.completions)) for group in made], flat=False)
    return tuple(replace(group, completion_mask=own) for group, own in zip(made, masks, strict=True))
