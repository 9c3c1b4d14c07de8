"""Offsets of tokens in their text, against decoding every beginning of it."""

from __future__ import annotations

import random
from itertools import accumulate

import pytest
from grpo_server.text.spelling import Speller
from tiny_tokenizers import MAKES, TEXTS, tiny_tokenizer

FAITHFUL = ["byte-level", "llama-2", "metaspace"]  # these decode to what they read


def by_definition(make: str, ids: list[int]) -> list[int]:
    """Of each token: how far the text is settled before it. Quadratic. (A run of byte tokens that ends within a character
    decodes to nothing but replacement characters, so that what was settled looks open again.)"""
    decode = tiny_tokenizer(make).decode
    text = decode(ids)
    return list(accumulate((_agreeing(decode(ids[:i]), text) for i in range(len(ids))), max))


def _agreeing(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("make", MAKES)
def test_tokens_stand_where_the_text_is_settled_before_them(make: str, text: str) -> None:
    tokenizer = tiny_tokenizer(make)
    for special in (True, False):
        ids = tokenizer(text, add_special_tokens=special)["input_ids"]
        spelled = Speller(tokenizer).spell(ids)
        assert spelled.text == tokenizer.decode(ids) == "".join(spelled.tokens)
        if "\ufffd" not in text:
            assert spelled.offsets == by_definition(make, ids)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("make", MAKES)
def test_a_prompt_is_shown_as_it_was_given(make: str, text: str) -> None:
    tokenizer = tiny_tokenizer(make)
    new = tokenizer("sky", add_special_tokens=False)["input_ids"][-1]
    for special in (True, False):
        ids = tokenizer(text, add_special_tokens=special)["input_ids"]
        spelled = Speller(tokenizer).spell_prompt(text, special, [])
        assert spelled is not None
        assert spelled.text == text == "".join(spelled.tokens)
        assert spelled.offsets == sorted(spelled.offsets)
        assert len(spelled.offsets) == len(ids)
        longer = Speller(tokenizer).spell_prompt(text, special, [new])
        assert longer is not None
        assert longer.offsets == [*spelled.offsets, len(text)]
        assert longer.tokens[:-1] == spelled.tokens
        assert longer.tokens[-1] == Speller(tokenizer).piece(new)


CUTS = [
    ("The sky is", " blue"),
    ("日本の空は", "青い"),
    ("日本語の", "空😀"),
    ("cafe\u0301 is", " blue"),
    ("😀", "😀😀"),
    ("The end.", "\nThe sky"),
    (" the", " sky"),
]


@pytest.mark.parametrize("make", MAKES)
def test_summing_from_the_end_of_the_context_on_takes_the_continuation(make: str) -> None:
    """As clients of `echo` do: from the first token whose offset is at least len(context)."""
    tokenizer = tiny_tokenizer(make)
    cuts = 0
    for context, continuation in CUTS:
        own = tokenizer(context + continuation, add_special_tokens=False)["input_ids"]
        before = tokenizer(context, add_special_tokens=False)["input_ids"]
        if own[: len(before)] != before:  # a token spans both: no sum is of the continuation alone
            continue
        cuts += 1
        for special in (True, False):
            spelled = Speller(tokenizer).spell_prompt(context + continuation, special, [])
            assert spelled is not None
            first = next(i for i, offset in enumerate(spelled.offsets) if offset >= len(context))
            whole = tokenizer(context + continuation, add_special_tokens=special)["input_ids"]
            lead = next(i for i in range(len(whole)) if whole[i : i + len(own)] == own)
            assert first == lead + len(before)
        if make in FAITHFUL:
            spelled = Speller(tokenizer).spell(own)  # given as ids
            length = len(tokenizer.decode(before))
            assert next(i for i, offset in enumerate(spelled.offsets) if offset >= length) == len(before)
    assert cuts >= 4


def test_a_character_is_added_by_the_last_token_that_spells_it() -> None:
    tokenizer = tiny_tokenizer("byte-level")
    ids = [t for byte in "é😀".encode() for t in tokenizer.convert_tokens_to_ids([_letter(byte)])]
    spelled = Speller(tokenizer).spell(ids)
    assert spelled.tokens == ["", "é", "", "", "", "😀"]
    assert spelled.offsets == [0, 0, 1, 1, 1, 1]


def test_what_is_no_character_stays_what_the_decoder_makes_of_it() -> None:
    """Broken bytes in the middle and at the end; what stands around them stands where it should."""
    tokenizer = tiny_tokenizer("byte-level")
    word = tokenizer(" sky", add_special_tokens=False)["input_ids"]
    for broken in (b"\xe3", b"\xe3\x81", b"\xff", b"\xe3\x81\xe3", b"\xf0\x9f\x98"):
        letters = tokenizer.convert_tokens_to_ids([_letter(b) for b in broken])
        ids = [*word, *letters, *word, *letters]
        spelled = Speller(tokenizer).spell(ids)
        assert spelled.text == tokenizer.decode(ids) == "".join(spelled.tokens)
        second = len(word) + len(letters)
        assert "".join(spelled.tokens[second : second + len(word)]) == " sky"


@pytest.mark.parametrize("make", MAKES)
def test_any_ids_at_all_join_to_their_text(make: str) -> None:
    tokenizer = tiny_tokenizer(make)
    rng = random.Random(1)
    for length in (0, 1, 2, 7, 300):
        ids = [rng.randrange(len(tokenizer)) for _ in range(length)]
        spelled = Speller(tokenizer).spell(ids)
        assert spelled.text == "".join(spelled.tokens)
        assert spelled.offsets == sorted(spelled.offsets)


@pytest.mark.parametrize("make", MAKES)
def test_special_tokens_within_the_text_are_shown(make: str) -> None:
    tokenizer = tiny_tokenizer(make)
    special = tokenizer.convert_ids_to_tokens([1])[0]
    text = f"the{special} sky"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    spelled = Speller(tokenizer).spell(ids)
    if 1 in ids:
        assert spelled.tokens[ids.index(1)].strip() == special
    assert "".join(spelled.tokens) == tokenizer.decode(ids)


def test_the_work_grows_with_the_tokens_and_not_with_their_square() -> None:
    """Counted in ids decoded: long runs of whole characters, of halves of one, and of what adds nothing."""
    tokenizer = tiny_tokenizer("byte-level")
    half = tokenizer.convert_tokens_to_ids([_letter(0xE3)])
    straddling = tokenizer.convert_tokens_to_ids([_letter(b) for b in "日".encode()])
    for run in (tokenizer("sky", add_special_tokens=False)["input_ids"], half, straddling, [*straddling[1:], half[0]]):
        counts = []
        for n in (500, 2000):
            counting = _Counting(tokenizer)
            Speller(counting).spell((run * n)[:n])
            counts.append(counting.decoded)
        assert counts[1] <= 6 * counts[0], run


class _Counting:
    def __init__(self, tokenizer: object) -> None:
        self._tokenizer, self.decoded = tokenizer, 0

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        return self._tokenizer(text, add_special_tokens=add_special_tokens)

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        self.decoded += len(ids)
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)


def _letter(byte: int) -> str:
    """How GPT-2 writes a byte in its vocabulary."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return chr(byte) if byte in plain else chr(256 + [b for b in range(256) if b not in plain].index(byte))
