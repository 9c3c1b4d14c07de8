"""Whether ids mean the same to two sides, by what servers tell and by a tokenizer at hand."""

from __future__ import annotations

from typing import Any

import pytest
from grpo_client import InvalidResponse, ProtocolError, ReferenceInfo, TokenizerIdentity, check_tokenizers
from grpo_client.tokenizers import local_identity


class Tokenizer:
    def __init__(self, *tokens: str) -> None:
        self.vocab = {token: i for i, token in enumerate(tokens)}

    def get_vocab(self) -> dict[str, int]:
        return self.vocab


def info(identity: TokenizerIdentity | None, vocab_size: int = 8) -> ReferenceInfo:
    told = {} if identity is None else {"tokenizer_fingerprint": identity.fingerprint, "tokens": identity.tokens}
    return ReferenceInfo.model_validate(
        {"model": "m", "fingerprint": "f", "version": 0, "dtype": "float32", "mode": "exact", "max_length": 9}
        | {"vocab_size": vocab_size}
        | told
    )


ABC = TokenizerIdentity.of(Tokenizer("a", "b", "c"))


def test_the_order_of_a_vocabulary_is_no_part_of_it_and_a_padded_one_is_the_same() -> None:
    other = Tokenizer("c", "b", "a")
    other.vocab = {"c": 2, "a": 0, "b": 1}
    assert TokenizerIdentity.of(other) == ABC
    check_tokenizers({"one": info(ABC, 8), "two": info(ABC, 16)}, ABC)


@pytest.mark.parametrize("tokens", [("a", "c", "b"), ("a", "b", "d"), ("a", "b", "c", "d"), ("a", "b")])
def test_a_local_tokenizer_that_differs_is_told_with_both_sizes(tokens: tuple[str, ...]) -> None:
    mine = TokenizerIdentity.of(Tokenizer(*tokens))
    with pytest.raises(
        InvalidResponse, match=rf"one .*\(3 tokens, 8 ids\).* the local tokenizer \({len(tokens)} tokens\)"
    ):
        check_tokenizers({"one": info(ABC)}, mine)


def test_who_tells_no_tokens_is_not_taken_for_the_same() -> None:
    with pytest.raises(InvalidResponse, match="two does not say"):
        check_tokenizers({"one": info(ABC), "two": info(None)})


@pytest.mark.parametrize("given", ["other", 3, ["a"]])
def test_what_is_no_tokenizer_is_refused(given: Any) -> None:
    with pytest.raises(ProtocolError, match="get_vocab"):
        local_identity(given)
