"""Tokens as strings and strings as tokens, for dialects that show one beside the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from grpo_client.protocol import IntArray

from grpo_server.service import Service
from grpo_server.text import Tokenizer, encode, no_tokenizer


async def encode_texts(
    service: Service, texts: Sequence[str], names: str, *, add_special_tokens: bool
) -> list[IntArray]:
    """Ids of each text, by the tokenizer of the reference that hosts when this returns. names: with {} for the index.

    Nothing awaits between its return and the caller's `Scoring.score`, so both use the same reference.
    """
    while True:
        service.scheduler.door.refuse_if_closed()
        engine = service.engine
        version, tokenizer = engine.info.version, engine.tokenizer
        if tokenizer is None:
            raise no_tokenizer()

        def work(tokenizer: Tokenizer = tokenizer) -> list[IntArray]:
            return [
                encode(tokenizer, text, add_special_tokens=add_special_tokens, param=names.format(i))
                for i, text in enumerate(texts)
            ]

        ids = await service.in_prepare(work)
        if engine.info.version == version:
            return ids


async def token_strings(service: Service, tokenizer: Tokenizer | None, ids: Iterable[int]) -> dict[int, str | None]:
    """The text of each id by itself; None for all of them where there is no tokenizer."""
    distinct = set(ids)
    if tokenizer is None:
        return dict.fromkeys(distinct)
    return await service.in_prepare(lambda: {i: tokenizer.decode([i], skip_special_tokens=False) for i in distinct})


async def decode_texts(service: Service, tokenizer: Tokenizer | None, sequences: Sequence[Sequence[int]]) -> list[str]:
    """The text of each sequence, special tokens included; empty where there is no tokenizer."""
    if tokenizer is None:
        return [""] * len(sequences)
    return await service.in_prepare(lambda: [tokenizer.decode(list(s), skip_special_tokens=False) for s in sequences])
