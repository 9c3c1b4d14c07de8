"""Strings that end a completion, found in its text: one may be spelt by several tokens, and in more ways than one."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


class StopStrings:
    """Says of each row whether a string is complete with its last token. window: tokens at the end that it must see."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._strings = tuple(strings)
        # A token has at least one byte; one more, since a decoder may drop a space at the start of what it is given.
        self.window = max(len(text.encode()) for text in strings) + 1

    def __call__(self, rows: Sequence[Sequence[int]]) -> list[bool]:
        """rows: the last `window` ids of each, or all where there are fewer."""
        texts = self._tokenizer.batch_decode([list(row) for row in rows], clean_up_tokenization_spaces=False)
        return [any(stop in text for stop in self._strings) for text in texts]
