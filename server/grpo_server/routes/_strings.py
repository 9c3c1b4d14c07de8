"""Tokens as strings and strings as tokens, for dialects that show one beside the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from grpo_client.protocol import IntArray

from grpo_server.service import Service
from grpo_server.spelling import Speller
from grpo_server.text import Tokenizer, encode, no_tokenizer


async def encode_texts(
    service: Service, tokenizer: Tokenizer | None, texts: Sequence[str], names: str, *, add_special_tokens: bool
) -> list[IntArray]:
    """Ids of each text. names: with {} for the index. Raises ServiceError (422) where there is no tokenizer."""
    if tokenizer is None:
        raise no_tokenizer()
    return await service.in_prepare(
        lambda: [
            encode(tokenizer, text, add_special_tokens=add_special_tokens, param=names.format(i))
            for i, text in enumerate(texts)
        ]
    )


async def token_strings(service: Service, tokenizer: Tokenizer | None, ids: Iterable[int]) -> dict[int, str | None]:
    """The text of each id by itself; None for all of them where there is no tokenizer."""
    distinct = set(ids)
    if tokenizer is None:
        return dict.fromkeys(distinct)
    return await service.in_prepare(lambda: {i: tokenizer.decode([i], skip_special_tokens=False) for i in distinct})


async def texts_behind(service: Service, tokenizer: Tokenizer | None, ids: Sequence[Sequence[int]]) -> list[str]:
    """What each of these adds to a text that has begun, of one id or none; empty where there is no tokenizer."""
    if tokenizer is None:
        return [""] * len(ids)

    def work() -> list[str]:
        speller = Speller(tokenizer)
        return ["".join(map(speller.piece, new)) for new in ids]

    return await service.in_prepare(work)
