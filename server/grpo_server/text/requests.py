"""One text to token ids, for requests that come as strings or chat messages. Runs on a worker thread, never on the event loop.

Prompt and completion are tokenized apart and their ids put side by side, so that the boundary falls where the caller drew
it. The ids go back with the answer: nobody has to guess.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jinja2
import numpy as np
from grpo_client.protocol import IntArray
from grpo_client.text import ChatMessage

from grpo_server.errors import ErrorCode, ServiceError


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    def __call__(self, text: str | list[str], *, add_special_tokens: bool, **more: Any) -> Mapping[str, Any]: ...

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str: ...

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]: ...

    def apply_chat_template(
        self, conversation: list[dict[str, Any]], *, tokenize: bool, add_generation_prompt: bool
    ) -> Any: ...


def no_tokenizer() -> ServiceError:
    return ServiceError(
        ErrorCode.INVALID_VALUE,
        "this reference has no tokenizer; send prompts and completions as token ids",
        param="prompt",
    )


def encode(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool, param: str) -> IntArray:
    """(n,) ids of a string."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ServiceError(
            ErrorCode.INVALID_VALUE,
            f"{param} is not valid Unicode text ({error.reason} at character {error.start}); send whole characters",
            param=param,
        ) from error
    return np.asarray(tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"], dtype=np.int32)


def render_chat(
    tokenizer: Tokenizer, messages: Sequence[ChatMessage], *, add_generation_prompt: bool, param: str
) -> str:
    """A conversation in the model's own chat template, which brings its special tokens itself."""
    try:
        return tokenizer.apply_chat_template(
            [dict(m) for m in messages], tokenize=False, add_generation_prompt=add_generation_prompt
        )
    # A template is a program of the model's author fed with data of the caller's: it may stumble over either.
    except (jinja2.TemplateError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ServiceError(
            ErrorCode.INVALID_VALUE,
            f"the model's chat template cannot render {param} ({str(error)[:200]}); send what it expects, or a string prompt",
            param=param,
        ) from error
