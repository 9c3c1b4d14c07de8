"""What an environment says, as token ids.

A text goes behind the policy's turn as it is. Messages (`{"role": "tool", "content": ...}`) go through the chat template: what
it writes between one turn of the assistant's and the next is put behind the policy's turn, and not a second time what the
policy has written itself, such as the token that ends its turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from grpo_training.rollouts.rollout import Turn

_SAID = "\u2402"  # what the policy is taken to have said, to be found again in the template's text


@dataclass(frozen=True, slots=True)
class Observation:
    """What is put behind a turn: one text or several messages."""

    ids: list[int]
    turns: list[Turn]


class Reader:
    """Reads what environments say. limit: tokens of one message."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, limit: int) -> None:
        self._tokenizer, self._limit = tokenizer, limit

    def said(self, ids: Sequence[int]) -> str:
        """A turn of the policy's, as an environment gets it."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def read(self, value: Any, last: int | None) -> Observation | None:
        """None where nothing was said: then the talk is over. last: the id that the policy's turn ended with.

        Raises ValueError for what is neither None, a text nor messages.
        """
        if value is None:
            return None
        if isinstance(value, str):
            kept = self._shortened(value)
            return Observation(self._ids(value)[: self._limit], [Turn("tool", kept, cut=kept != value)])
        messages = [value] if isinstance(value, Mapping) else list(value) if isinstance(value, Sequence) else []
        if not messages or not all(isinstance(m, Mapping) and isinstance(m.get("content"), str) for m in messages):
            raise ValueError(f"it must give None, a text, or messages with a text as content, not {value!r:.80}")
        shortened = [{"role": "tool", **m, "content": self._shortened(m["content"])} for m in messages]
        turns = [
            Turn(short["role"], short["content"], cut=short["content"] != whole["content"])
            for short, whole in zip(shortened, messages, strict=True)
        ]
        return Observation(self._ids(self._between(shortened, last)), turns)

    def _between(self, messages: list[dict[str, Any]], last: int | None) -> str:
        if not self._tokenizer.chat_template:
            raise ValueError("it gives messages, and the tokenizer has no chat template: let it give a text")
        talk = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _SAID}, *messages]
        text = str(self._tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True))
        _, found, rest = text.rpartition(_SAID)
        if not found:
            raise ValueError("the chat template leaves out what the assistant said: let it give a text")
        return rest if last is None else rest.removeprefix(str(self._tokenizer.decode([last])))

    def _shortened(self, text: str) -> str:
        """Its first `limit` tokens."""
        if len(ids := self._ids(text)) <= self._limit:
            return text
        if not self._tokenizer.is_fast:
            return str(self._tokenizer.decode(ids[: self._limit]))
        ends = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return text[: ends[self._limit - 1][1]] if self._limit else ""

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
