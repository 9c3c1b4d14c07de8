"""Where each token stands in the text that it is part of: offsets as OpenAI's `text_offset` has them.

Tokens do not decode one by one: a sentencepiece decoder strips the space before the first, and a character may be spelled by
several byte tokens. So tokens are decoded where they stand, in as little company as will do, and compared with the text of the
whole. What a token adds is the slice between its offset and the next, which makes the slices join to the text; of tokens that
spell one character together the last adds it, and the others stand at its beginning and add nothing. (vLLM's
`detokenize_incrementally` emits text in the same order.)

All of it works on a tokenizer and lists, on a worker thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from grpo_server.text.requests import Tokenizer

# What a decoder writes for bytes that are no character: at most three of them may yet become one.
_BROKEN = "\N{REPLACEMENT CHARACTER}"
_MOST_BROKEN = 3
# Tokens that spell characters across each other's ends. Real text has a handful in a row.
_LONGEST_CHAIN = 64
# Tokens in a row that add nothing to the text before the whole beginning is decoded to see where it has got to.
_PATIENCE = 4


@dataclass(frozen=True, slots=True)
class Spelled:
    """A text of n tokens; offsets: (n,) in characters, from 0, never falling."""

    text: str
    offsets: list[int]

    @property
    def tokens(self) -> list[str]:
        """(n,) what each adds; joined, they are the text."""
        bounds = [*self.offsets, len(self.text)]
        return [self.text[start:end] for start, end in pairwise(bounds)]


class Speller:
    """Spells ids by one tokenizer; remembers what it has decoded."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._before = list(tokenizer("a", add_special_tokens=False)["input_ids"])
        self._text_before = self._decode(self._before)
        self._pieces: dict[int, str] = {}

    def piece(self, token: int) -> str:
        """What an id adds to a text that has begun."""
        if token not in self._pieces:
            self._pieces[token] = self._added(self._before, self._text_before, [token])
        return self._pieces[token]

    def spell(self, ids: Sequence[int]) -> Spelled:
        """The text of ids, special tokens included, and where each of them stands."""
        text = self._decode(ids)
        offsets: list[int] = []
        at, missed, patience = 0, 0, _PATIENCE
        while len(offsets) < len(ids):
            found = self._next(ids, len(offsets), text, at)
            if found is None:
                offsets.append(at)
                missed += 1
                if missed == patience:
                    at = max(at, _common(self._decode(ids[: len(offsets)]), text, 0))
                    missed, patience = 0, 2 * patience
                continue
            missed = 0
            starts, width = found
            offsets += [at + start for start in starts]
            at += width
        return Spelled(text, offsets)

    def spell_prompt(self, prompt: str, add_special_tokens: bool, new: Sequence[int]) -> Spelled | None:
        """The prompt as it was given, with the tokens that it was read as, and new ones behind it. Special tokens that the
        tokenizer put around it are not in the text: they stand where they are and add nothing. None where the tokenizer
        cannot tell."""
        if not getattr(self._tokenizer, "is_fast", False):
            return None
        read = self._tokenizer(
            prompt,
            add_special_tokens=add_special_tokens,
            return_special_tokens_mask=True,
            return_offsets_mapping=True,
        )
        added = [bool(flag) for flag in read["special_tokens_mask"]]
        own = [token for token, flag in zip(read["input_ids"], added, strict=True) if not flag]
        whole = self.spell([*own, *new])
        starts = [*whole.offsets, len(whole.text)]
        if not whole.text.startswith(prompt) or starts[len(own)] != len(prompt):
            # a normalizer changed the text on the way in (NFC, lower case): the tokenizer's own alignment knows from where
            spans = [span for span, flag in zip(read["offset_mapping"], added, strict=True) if not flag]
            behind = [self.piece(token) for token in new]
            starts = [*_starts(spans), *(len(prompt) + sum(map(len, behind[:i])) for i in range(len(new) + 1))]
            whole = Spelled("".join([prompt, *behind]), [])
        offsets: list[int] = []
        i = 0
        for flag in added:
            offsets.append(starts[i])
            i += not flag
        return Spelled(whole.text, [*offsets, *starts[i:-1]])

    def _next(self, ids: Sequence[int], first: int, text: str, at: int) -> tuple[list[int], int] | None:
        """The fewest tokens from `first` on that spell text[at:] up to the end of a character: where each begins, and how
        much they add. None when the first does not go on with the text."""
        begins = at == 0 and first < _LONGEST_CHAIN  # nothing stands before it, and the decoder may strip
        before = list(ids[:first]) if begins else self._before
        text_before = self._decode(before) if begins else self._text_before
        starts = [0]
        for last in range(first, min(len(ids), first + _LONGEST_CHAIN)):
            if last == first and not begins:
                added = self.piece(ids[first])
            else:
                added = self._added(before, text_before, ids[first : last + 1])
            width = _common(added, text, at)
            rest = added[width:]
            if not rest:
                return starts, width
            if len(rest) > _MOST_BROKEN or rest.strip(_BROKEN):
                return None
            starts.append(width)
        return None

    def _added(self, before: list[int], text_before: str, ids: Sequence[int]) -> str:
        whole = self._decode([*before, *ids])
        return whole[_common(text_before, whole, 0) :]

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False) if ids else ""


def _common(part: str, text: str, at: int) -> int:
    """How many characters of part text[at:] begins with."""
    if text.startswith(part, at):
        return len(part)
    return next(i for i, character in enumerate(part) if not text.startswith(character, at + i))


def _starts(spans: Sequence[tuple[int, int]]) -> list[int]:
    """Offsets from the spans of characters that tokens were read from: each token begins where the one before ended, unless
    it shares its first character with it."""
    starts: list[int] = []
    end = 0
    for first, last in spans:
        starts.append(min(end, first) if last > first else end)
        end = max(end, last)
    return starts
