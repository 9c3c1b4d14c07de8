"""Rollouts as files hold them: one JSON object a line, one group each, with whatever else a trainer wrote beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from grpo_client.errors import ProtocolError
from grpo_client.protocol import Extra, Normalizer, TopDtype
from grpo_client.text import AnyRequest
from grpo_client.validation.limits import Limits
from grpo_client.validation.words import as_object, describe
from grpo_client.wire_json.request import request_from_object

_GROUP_FIELDS = ("prompt", "messages", "completions")


@dataclass(frozen=True, slots=True)
class ScoreDefaults:
    """How to score every line; a line's own "temperature" goes before the one here."""

    temperature: float = 1.0
    normalizer: Normalizer = "softmax"
    extras: Sequence[Extra] = ()
    top_k: int = 0
    top_dtype: TopDtype = "float32"


@dataclass(frozen=True, slots=True)
class Rollout:
    """One line: its number from 1, its "id" if it has one, and what is to be asked."""

    line: int
    id: Any
    request: AnyRequest


def read_rollout(number: int, line: bytes, defaults: ScoreDefaults) -> Rollout:
    """One line as a request. Other fields than ours are a trainer's own and left alone.

    Raises ProtocolError that names the field.
    """
    try:
        parsed = from_json(line)
    except ValueError as error:
        raise ProtocolError(f"not valid JSON ({error})", code="malformed_json") from error
    if (fields := as_object(parsed)) is None:
        raise ProtocolError(f"must be a JSON object, got {describe(parsed)}", code="wrong_type")
    message = {
        "groups": [{name: fields[name] for name in _GROUP_FIELDS if name in fields}],
        "temperature": fields.get("temperature", defaults.temperature),
        "normalizer": defaults.normalizer,
        "return": list(defaults.extras),
        "top_k": defaults.top_k,
        "top_dtype": defaults.top_dtype,
    }
    if fields.get("completion_mask") is not None:
        message["completion_mask"] = [fields["completion_mask"]]
    try:
        request = request_from_object(message, Limits())
    except ProtocolError as error:  # a line is one group, so its path need not say which
        raise ProtocolError(
            _of_line(error.message), _of_line(error.param or "") or None, error.code, error.status
        ) from error
    return Rollout(number, fields.get("id"), request)


def _of_line(path: str) -> str:
    return path.replace("groups[0].", "").replace("completion_mask[0]", "completion_mask")
