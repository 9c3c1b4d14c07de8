"""Tokens as strings and strings as tokens, for dialects that show one beside the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from grpo_client.protocol import IntArray

from grpo_server.engine.contract import Hosted
from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.lifecycle import Service
from grpo_server.routes._common import aside
from grpo_server.routes.dialects._prompt_logprobs import ids_shown
from grpo_server.routes.dialects._sequence_values import SequenceScores
from grpo_server.routes.dialects._sequences import are_many
from grpo_server.text.requests import Tokenizer, no_tokenizer
from grpo_server.text.spelling import Speller
from grpo_server.text.tokenizing import Text, encode_all

# Best tokens a position whose text is given unasked: what OpenAI and vLLM allow at most by default.
MOST_DECODED = 20


async def encode_texts(
    service: Service, hosted: Hosted, texts: Sequence[str], names: str, *, add_special_tokens: bool
) -> list[IntArray]:
    """Ids of each text. names: with {} for the index. Raises ServiceError: 422 where there is no tokenizer, 413 for too many
    texts and for one that is too long for the model."""
    if hosted.tokenizer is None:
        raise no_tokenizer()
    if len(texts) > (most := service.config.max_completions):
        every = names.partition("[")[0]
        raise ServiceError(
            ErrorCode.REQUEST_TOO_LARGE,
            f"{every} has {len(texts)} sequences; the limit is {most}; send fewer at once",
            param=every,
        )
    named = [Text(text, names.format(i), add_special_tokens) for i, text in enumerate(texts)]
    return await encode_all(service, hosted.tokenizer, named, hosted.info.max_length)


async def token_strings(service: Service, hosted: Hosted, scores: Sequence[SequenceScores]) -> Mapping[int, str | None]:
    """The text by itself of each id that an answer about these scores may name; of none where there is no tokenizer."""
    tokenizer, known = hosted.tokenizer, hosted.strings
    if tokenizer is None or not scores:
        return {}
    distinct = await aside(service, are_many(scores), lambda: ids_shown(scores))
    if unknown := distinct - known.keys():
        await service.in_tokenizer(
            lambda: known.update((i, tokenizer.decode([i], skip_special_tokens=False)) for i in unknown)
        )
    return known


def wants_text(detokenize: bool | None, best: int) -> bool:
    """Whether an answer has the text of ids: as it was asked, else while their best are few."""
    return best <= MOST_DECODED if detokenize is None else detokenize


async def texts_behind(service: Service, tokenizer: Tokenizer | None, ids: Sequence[Sequence[int]]) -> list[str]:
    """What each of these adds to a text that has begun, of one id or none; empty where there is no tokenizer."""
    if tokenizer is None:
        return [""] * len(ids)

    def work() -> list[str]:
        speller = Speller(tokenizer)
        return ["".join(map(speller.piece, new)) for new in ids]

    return await service.in_tokenizer(work)
