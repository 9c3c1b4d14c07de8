"""What all parts of a configuration have in common."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from grpo_client import InvalidSetting
from grpo_client.addresses import base_of
from pydantic import BaseModel, ConfigDict, SerializationInfo, SerializerFunctionWrapHandler, model_serializer

from grpo_training.redaction import redacted


class Section(BaseModel):
    """Frozen, and without unknown fields. As JSON and in a repr it shows no secret: whoever writes it down need not care."""

    # Without the input: a ValidationError that nobody caught would show the key that was mistyped.
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True)

    @model_serializer(mode="wrap")
    def _without_secrets(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        values = handler(self)
        return redacted(values) if info.mode == "json" else values

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        return ((name, redacted(value)) for name, value in super().__repr_args__())


def base_url(value: str, *, key: str) -> str:
    """A server's base URL as it was given, without the slash at the end. key: where its API key belongs.

    Raises ValueError, which repeats nothing that may be a password.
    """
    if "@" in value:
        raise ValueError(f"must not hold a user or password, which logs would show; {key}")
    if "?" in value or "#" in value:
        raise ValueError(f"must end before the ? or #: routes are added to it; {key}")
    try:
        return base_of(value)
    except InvalidSetting:
        hint = f"; did you mean http://{value}?" if value and "://" not in value else ""
        raise ValueError(f"must look like http://localhost:8000, got {value!r:.200}{hint}") from None
