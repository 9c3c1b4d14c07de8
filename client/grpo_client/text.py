"""A request whose prompts and completions are still text; only a server, which has the tokenizer, can turn it into ids.

It travels as JSON only (a tensor of text does not exist). The answer carries the ids that were scored, so that nobody
has to guess where the token boundaries fell: `ScoreResult.prompt_ids` and `.completion_ids`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_client import shown
from grpo_client.arguments import readers
from grpo_client.arguments.id_lists import check_counts
from grpo_client.arguments.readers import wrong
from grpo_client.protocol import Extra, Normalizer, ScoreRequest, TopDtype

# A chat message as chat templates take it: {"role": "user", "content": "..."} and whatever else the template reads.
ChatMessage = Mapping[str, Any]
Prompt = str | Sequence[ChatMessage]


@dataclass(frozen=True, slots=True, repr=False)
class TextGroup:
    """One prompt and its completions, as text.

    prompt: a string, tokenized as the model's tokenizer does by default (its BOS token included), or chat messages,
    which go through the model's chat template with the generation prompt added.
    completions: strings, tokenized without special tokens added and appended to the prompt's ids.
    """

    prompt: str | tuple[ChatMessage, ...]
    completions: tuple[str, ...]
    temperature: float = 1.0

    def __repr__(self) -> str:
        return shown.text_group(self)


@dataclass(frozen=True, slots=True, repr=False)
class TextScoreRequest:
    """`ScoreRequest` before tokenization. There is no `token_ids`: positions are not known yet."""

    groups: tuple[TextGroup, ...]
    normalizer: Normalizer = "softmax"
    extras: frozenset[Extra] = frozenset()
    top_k: int = 0
    fingerprint: str | None = None
    top_dtype: TopDtype = "float32"
    model: str | None = None

    @classmethod
    def of(
        cls,
        prompts: Sequence[Prompt],
        completions: Sequence[Sequence[str]] | Sequence[str],
        *,
        temperature: float | Sequence[float] = 1.0,
        normalizer: Normalizer = "softmax",
        extras: Sequence[Extra] = (),
        top_k: int = 0,
        fingerprint: str | None = None,
        top_dtype: TopDtype = "float32",
        model: str | None = None,
    ) -> TextScoreRequest:
        """Build a request from lists: `prompts[k]` with `completions[k][g]`.

        One completion a prompt may come without a list around it: `prompts[k]` with `completions[k]`.
        temperature: one, or one per group. Raises ProtocolError, which names the entry, for what is no list of text.
        """
        asked = readers.rows(prompts, "prompts", "prompts, each a string or a list of chat messages")
        answers, flat = _group_completions(completions)
        check_counts(len(asked), len(answers), flat=flat)
        temperatures = readers.read_temperatures(temperature, len(asked))
        groups = tuple(
            TextGroup(_prompt(prompt, f"prompts[{k}]"), answers[k], temperatures[k]) for k, prompt in enumerate(asked)
        )
        return cls(
            groups,
            normalizer,
            readers.read_names(extras, "extras"),
            readers.read_count(top_k, "top_k"),
            fingerprint,
            top_dtype,
            model,
        )

    def __repr__(self) -> str:
        return shown.request(self)


def _prompt(value: Any, name: str) -> str | tuple[ChatMessage, ...]:
    if isinstance(value, str):
        return _text(value, name)
    if readers.is_mapping(value):
        raise wrong(name, "is one chat message; a conversation is a list of them: put it into a list")
    messages = readers.rows(value, name, 'chat messages, such as {"role": "user", "content": "..."} (or be a string)')
    if not messages:
        raise wrong(name, "is an empty conversation; give at least one message")
    for i, message in enumerate(messages):
        fields: Mapping[str, Any] = message if readers.is_mapping(message) else {}
        if not isinstance(fields.get("role"), str) or "content" not in fields:
            hint = "; token ids go to score" if readers.is_number(message) else ""
            raise wrong(f"{name}[{i}]", f'must be a chat message with "role" (a string) and "content"{hint}')
    return tuple(messages)


def _group_completions(completions: Any) -> tuple[list[tuple[str, ...]], bool]:
    """One tuple of completions per prompt, and whether they came flat: one completion a prompt, not in a list."""
    entries = readers.rows(completions, "completions", "completions (strings), one list of them per prompt")
    flat = [k for k, entry in enumerate(entries) if isinstance(entry, str)]
    if flat and len(flat) < len(entries):
        other = next(k for k, entry in enumerate(entries) if not isinstance(entry, str))
        raise wrong(
            f"completions[{flat[0]}]",
            f"is a string, and completions[{other}] is {readers.kind_of(entries[other])}; give either one string per "
            "prompt everywhere, or a list of strings everywhere",
        )
    if flat:
        return [(_text(entry, f"completions[{k}]"),) for k, entry in enumerate(entries)], True
    nested = [readers.rows(entry, f"completions[{k}]", "strings") for k, entry in enumerate(entries)]
    return [
        tuple(_text(c, f"completions[{k}][{g}]") for g, c in enumerate(group)) for k, group in enumerate(nested)
    ], False


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        remedy = "token ids go to score" if readers.is_number(value) else "a chat message's is its content"
        raise wrong(name, f"must be a string, got {readers.kind_of(value)}; {remedy}")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise wrong(name, "holds half of a surrogate pair, which is no text; decode it with errors='replace'")
    return str(value)  # NumPy's strings become Python's


AnyRequest = ScoreRequest | TextScoreRequest
