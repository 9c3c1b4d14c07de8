"""A request whose prompts and completions are still text; only a server, which has the tokenizer, can turn it into ids.

It travels as JSON only (a tensor of text does not exist). The answer carries the ids that were scored, so that nobody
has to guess where the token boundaries fell: `ScoreResult.prompt_ids` and `.completion_ids`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_client.protocol import Extra, Normalizer, ScoreRequest

# A chat message as chat templates take it: {"role": "user", "content": "..."} and whatever else the template reads.
ChatMessage = Mapping[str, Any]
Prompt = str | Sequence[ChatMessage]


@dataclass(frozen=True, slots=True)
class TextGroup:
    """One prompt and its completions, as text.

    prompt: a string, tokenized as the model's tokenizer does by default (its BOS token included), or chat messages,
    which go through the model's chat template with the generation prompt added.
    completions: strings, tokenized without special tokens added and appended to the prompt's ids.
    """

    prompt: str | tuple[ChatMessage, ...]
    completions: tuple[str, ...]
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class TextScoreRequest:
    """`ScoreRequest` before tokenization. There is no `token_ids`: positions are not known yet."""

    groups: tuple[TextGroup, ...]
    normalizer: Normalizer = "softmax"
    extras: frozenset[Extra] = frozenset()
    top_k: int = 0
    fingerprint: str | None = None

    @classmethod
    def of(
        cls,
        prompts: Sequence[Prompt],
        completions: Sequence[Sequence[str]],
        *,
        temperature: float | Sequence[float] = 1.0,
        normalizer: Normalizer = "softmax",
        extras: Sequence[Extra] = (),
        top_k: int = 0,
        fingerprint: str | None = None,
    ) -> TextScoreRequest:
        """Build a request from plain lists: prompts[k] with completions[k][g]. temperature: one, or one per group.

        Raises ValueError when the lists do not match in length.
        """
        temps = (
            [float(temperature)] * len(prompts)
            if isinstance(temperature, int | float)
            else [float(t) for t in temperature]
        )
        if not len(prompts) == len(completions) == len(temps):
            raise ValueError(
                f"prompts, completions and temperature must have one entry per group: "
                f"got {len(prompts)}, {len(completions)} and {len(temps)}"
            )
        groups = tuple(
            TextGroup(prompt if isinstance(prompt, str) else tuple(prompt), tuple(group), temp)
            for prompt, group, temp in zip(prompts, completions, temps, strict=True)
        )
        return cls(groups, normalizer, frozenset(extras), top_k, fingerprint)


AnyRequest = ScoreRequest | TextScoreRequest
