"""The server's own tokenizer over the line: the calls and what they answer."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json

from grpo_client.arguments.types import Ids
from grpo_client.errors import InvalidResponse
from grpo_client.http.exchange import Call, Reply, raise_for_status
from grpo_client.protocol import MEDIA_JSON
from grpo_client.text import Prompt
from grpo_client.validation.words import as_object

_JSON = {"Content-Type": MEDIA_JSON, "Accept": MEDIA_JSON}


def tokenize_call(
    text: Prompt, *, add_special_tokens: bool, add_generation_prompt: bool, model: str | None = None
) -> Call:
    """The call that asks for the ids of a string, or of chat messages under the model's own template."""
    body: dict[str, Any] = {"prompt": text, "add_special_tokens": add_special_tokens}
    if not isinstance(text, str):
        body = {"messages": [dict(m) for m in text], "add_generation_prompt": add_generation_prompt}
    return Call("POST", "/tokenize", _JSON, json.dumps(body | _named(model)).encode())


def detokenize_call(ids: Ids, model: str | None = None) -> Call:
    """The call that asks for the text of ids, special tokens included."""
    return Call("POST", "/detokenize", _JSON, json.dumps({"tokens": np.asarray(ids).tolist()} | _named(model)).encode())


def _named(model: str | None) -> dict[str, str]:
    return {} if model is None else {"model": model}


def read_ids(reply: Reply) -> NDArray[np.int32]:
    """(n,) ids."""
    return np.array(_field(reply, "tokens", list), dtype=np.int32)


def read_text(reply: Reply) -> str:
    return _field(reply, "prompt", str)


def _field(reply: Reply, name: str, kind: type) -> Any:
    raise_for_status(reply)
    try:
        value = (as_object(from_json(reply.body)) or {}).get(name)
    except ValueError:
        value = None
    if not isinstance(value, kind):
        raise InvalidResponse(f"{reply.url} did not answer with {name!r}", name, reply.named_id)
    return value
