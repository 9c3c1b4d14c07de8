"""Many texts to ids without holding anybody up: in turns on the tokenizer's own thread, and not at all for what cannot fit.

A turn is short, so that a small text behind a huge request waits for one turn of it. A text that is too long for the model is
found out by its length, or by the tokens of its beginning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from grpo_client.protocol import Group, IntArray, ScoreRequest
from grpo_client.text import ChatMessage, TextScoreRequest

from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.lifecycle import Service
from grpo_server.text.requests import Tokenizer, encode, render_chat

# No vocabulary has a longer token than this, in characters: the longest in use are runs of blanks, 128 or fewer.
LONGEST_TOKEN = 256
# Few texts have more characters a token; one that has is looked at twice.
CHARACTERS_A_TOKEN = 8
# By so many tokens may a text be shorter than its own beginning, which is cut off in the middle of a word.
CUT_WORD = 32
# A turn takes a few milliseconds to a few tens.
TURN_CHARACTERS = 2**16
TURN_TEXTS = 256


@dataclass(frozen=True, slots=True)
class Text:
    """content: a string, or chat messages for the model's template. param: its name in errors."""

    content: str | Sequence[ChatMessage]
    param: str
    add_special_tokens: bool = False

    @property
    def weight(self) -> int:
        return len(self.content) if isinstance(self.content, str) else TURN_CHARACTERS


async def encode_all(service: Service, tokenizer: Tokenizer, texts: Sequence[Text], max_length: int) -> list[IntArray]:
    """The ids of each. Raises ServiceError: 413 for a text of more than max_length tokens, or more than the queue holds
    together; 422 for what cannot be tokenized."""
    most = service.config.max_queue_tokens
    out: list[IntArray] = []
    total = 0
    for turn in _turns(texts):
        ids = await service.in_tokenizer(lambda turn=turn: [_encode(tokenizer, text, max_length) for text in turn])
        total += sum(map(len, ids))
        if total > most:
            raise ServiceError(
                ErrorCode.REQUEST_TOO_LARGE,
                f"the texts have more than {most} tokens together, which is what the queue holds; send fewer at once, or "
                "start the server with a larger --max-queue-tokens",
                param=turn[-1].param,
            )
        out += ids
    return out


async def tokenize_request(
    service: Service, tokenizer: Tokenizer, request: TextScoreRequest, max_length: int
) -> ScoreRequest:
    """The same request in ids; an error names the prompt or completion at fault."""
    texts: list[Text] = []
    for k, group in enumerate(request.groups):
        name = f"groups[{k}].{'prompt' if isinstance(group.prompt, str) else 'messages'}"
        texts.append(Text(group.prompt, name, add_special_tokens=True))
        texts += [Text(text, f"groups[{k}].completions[{g}]") for g, text in enumerate(group.completions)]
    ids = iter(await encode_all(service, tokenizer, texts, max_length))
    groups = tuple(Group(next(ids), tuple(next(ids) for _ in g.completions), g.temperature) for g in request.groups)
    return ScoreRequest(
        groups, request.normalizer, request.extras, request.top_k, request.fingerprint, request.top_dtype
    )


def _turns(texts: Sequence[Text]) -> Iterator[list[Text]]:
    turn: list[Text] = []
    weight = 0
    for text in texts:
        if turn and (len(turn) == TURN_TEXTS or weight + text.weight > TURN_CHARACTERS):
            yield turn
            turn, weight = [], 0
        turn.append(text)
        weight += text.weight
    if turn:
        yield turn


def _encode(tokenizer: Tokenizer, text: Text, max_length: int) -> IntArray:
    if not isinstance(text.content, str):
        # a template brings its special tokens itself
        rendered = render_chat(tokenizer, text.content, add_generation_prompt=True, param=text.param)
        return encode_bounded(tokenizer, rendered, add_special_tokens=False, param=text.param, max_length=max_length)
    return encode_bounded(
        tokenizer, text.content, add_special_tokens=text.add_special_tokens, param=text.param, max_length=max_length
    )


def encode_bounded(
    tokenizer: Tokenizer, text: str, *, add_special_tokens: bool, param: str, max_length: int
) -> IntArray:
    """`encode` for a text of at most max_length tokens; no more than twice that is ever tokenized of a longer one. Raises
    ServiceError (413)."""
    check_characters(text, param, max_length)
    looked_at = max_length * CHARACTERS_A_TOKEN
    while 2 * looked_at < len(text):
        tokens = len(encode(tokenizer, text[:looked_at], add_special_tokens=False, param=param))
        if tokens > max_length + CUT_WORD:
            raise _too_long(
                f"has {len(text)} characters, the first {looked_at} of them {tokens} tokens", param, max_length
            )
        looked_at *= 2
    return encode(tokenizer, text, add_special_tokens=add_special_tokens, param=param)


def check_characters(text: str, param: str, max_length: int) -> None:
    """Raises ServiceError (413) for more characters than max_length tokens can have."""
    if len(text) > max_length * LONGEST_TOKEN:
        raise _too_long(f"has {len(text)} characters", param, max_length)


def _too_long(what: str, param: str, max_length: int) -> ServiceError:
    return ServiceError(
        ErrorCode.CONTEXT_LENGTH,
        f"{param} {what}; the model's context holds {max_length} tokens; shorten it",
        param=param,
    )
