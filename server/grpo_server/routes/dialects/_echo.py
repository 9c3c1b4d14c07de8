"""OpenAI's `logprobs` object: tokens as they stand in the text, their log-probs, the best ones beside them, and text offsets.

Entries are those of the tokens that are shown: the prompt's with `echo`, and the new one. `tokens` join to the text of the
choice, and `text_offset` says where each begins in it. For a prompt given as text that text is the prompt itself, so that
offsets count from its first character: special tokens that the tokenizer put before it stand at offset 0 and add nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from grpo_client.wire_json.writer import in_steps, rows_of

from grpo_server.routes.dialects._sequence_values import SequenceScores
from grpo_server.text.requests import Tokenizer
from grpo_server.text.spelling import Spelled, Speller


def new_ids(scores: SequenceScores) -> list[int]:
    """The next token, if it was asked for and there is room."""
    return [] if scores.next_token is None else [scores.next_token.token_id]


class Show:
    """How the tokens of one request are shown. best: so many are named beside each; next_ids: named beside the new one in
    place of the best, if there are any. Called on a worker thread."""

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        *,
        echo: bool,
        best: int,
        next_ids: Sequence[int],
        as_ids: bool,
        add_special_tokens: bool,
    ) -> None:
        self._speller = None if tokenizer is None else Speller(tokenizer)
        self._echo, self._best, self._as_ids, self._special = echo, best, as_ids, add_special_tokens
        self._next_ids = next_ids

    def __call__(self, scores: SequenceScores, prompt: str | None) -> Shown:
        """prompt: the text that the ids were read from, None where they were given."""
        new = new_ids(scores)
        ids = [*scores.ids.tolist(), *new] if self._echo else new
        spelled = self._spell(ids, new, prompt)
        names = spelled.tokens if self._speller is not None and not self._as_ids else list(map(_by_id, ids))
        beside = {*scores.top_ids[:, : self._best].ravel().tolist()} if self._echo else set()
        if scores.next_token is not None:
            beside.update(self._next_ids or scores.next_token.top_ids[: self._best].tolist())
        named = {token: self._name(token) for token in beside}
        return Shown(spelled, names, named, self._echo, self._best, self._next_ids)

    def _spell(self, ids: list[int], new: list[int], prompt: str | None) -> Spelled:
        if self._speller is None:
            return Spelled("", [0] * len(ids))
        if not self._echo:
            pieces = list(map(self._speller.piece, ids))
            return Spelled("".join(pieces), [0, *accumulate(map(len, pieces))][:-1])
        whole = None if prompt is None else self._speller.spell_prompt(prompt, self._special, new)
        return whole or self._speller.spell(ids)

    def _name(self, token: int) -> str:
        return _by_id(token) if self._speller is None or self._as_ids else self._speller.piece(token)


@dataclass(frozen=True, slots=True)
class Shown:
    """The tokens of one choice. names: (n,) of those that are there; beside: of each id that may be named beside them."""

    spelled: Spelled
    names: list[str]
    beside: dict[int, str]
    echo: bool
    best: int
    next_ids: Sequence[int]

    @property
    def text(self) -> str:
        return self.spelled.text

    def logprobs(self, scores: SequenceScores) -> dict[str, Any]:
        """One entry for each token shown; null for the first of a prompt, which nothing predicts."""
        k = self.best
        token_logprobs: list[float | None] = [None, *scores.logprobs.tolist()] if self.echo else []
        if (new := scores.next_token) is not None:
            token_logprobs.append(new.logprob)
        return {
            "tokens": in_steps(self.names),
            "token_logprobs": in_steps(token_logprobs),
            "top_logprobs": in_steps(self._tops(scores), figures=2 * (1 + k)),
            "text_offset": in_steps(self.spelled.offsets),
        }

    def _tops(self, scores: SequenceScores) -> Iterator[dict[str, float] | None]:
        k = self.best
        names = iter(self.names)
        if self.echo:
            next(names)
            yield None
            rows = rows_of(scores.ids[1:], scores.logprobs, scores.top_ids[:, :k], scores.top_logprobs[:, :k])
            yield from (self._top(name, *row) for name, row in zip(names, rows, strict=False))
        if (new := scores.next_token) is not None:
            beside = new.top_ids[:k].tolist(), new.top_logprobs[:k].tolist()
            if self.next_ids:
                asked = sorted(zip(new.token_logprobs.tolist(), self.next_ids, strict=True), reverse=True)
                beside = [token for _, token in asked], [logprob for logprob, _ in asked]
            yield self._top(self.names[-1], new.token_id, new.logprob, *beside)

    def _top(
        self, name: str, token: int, logprob: float, ids: Sequence[int], logprobs: Sequence[float]
    ) -> dict[str, float]:
        """The actual token first and the best last. Where two tokens read alike the better one stays: clients compare
        token_logprobs with the maximum of this, by ==, to see whether the actual token was the best."""
        named = {name: logprob}
        for other, value in zip(reversed(ids), reversed(logprobs), strict=True):
            key = name if other == token else self.beside[other]
            named[key] = max(value, named.get(key, value))
        return named


def _by_id(token: int) -> str:
    return f"token_id:{token}"
