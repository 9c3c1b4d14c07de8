"""Rollouts over the OpenAI completions API, as messages: what is asked, and how an answer is read. No I/O.

Token ids go in and token ids come out. Text is never tokenized again: it may give other ids than those that were sampled, and
then every log-prob is of something that never happened. A server that does not return ids, or log-probs of them, is
refused with the name of the option that it lacks:

    vLLM     choices[].token_ids (return_token_ids), or "token:123" in logprobs.tokens (return_tokens_as_token_ids)
    SGLang   choices[].token_ids (return_token_ids, since July 2026)
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grpo_training.config import RolloutConfig, RolloutError

# What vLLM writes for minus infinity, which JSON does not have. No sampled token has that log-prob.
_MINUS_INFINITY = -9999.0
_TOKEN = re.compile(r"token(?:_id)?:(\d+)")


@dataclass(frozen=True, slots=True)
class Sampled:
    """One completion. ids: 1 to max_new_tokens of them. logprobs: nats, one for each. ended: False if it was cut."""

    ids: list[int]
    logprobs: list[float]
    ended: bool


@dataclass(frozen=True, slots=True)
class Border:
    """What an answer must keep to. vocab_size: ids lie below it. eos_ids: a completion ends with the first of these."""

    group_size: int
    max_new_tokens: int
    vocab_size: int
    eos_ids: frozenset[int]
    stops: bool


def request_body(prompt: Sequence[int], options: RolloutConfig, border: Border, *, seed: int) -> bytes:
    """One prompt, as many completions of it and as long as the border says.

    All that shapes the distribution is spelt out: a server would otherwise take top_p, top_k or a repetition penalty from
    the model's own generation settings.
    """
    return json.dumps(
        {
            "model": options.model,
            "prompt": [list(prompt)],
            "n": border.group_size,
            "max_tokens": border.max_new_tokens,
            "temperature": options.temperature,
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "logprobs": 1,
            "stop": list(options.stop) or None,
            "seed": seed,
            "stream": False,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
    ).encode()


def read_answer(body: bytes, prompt: Sequence[int], border: Border) -> list[Sampled]:
    """The completions in the order of their index. Raises RolloutError for anything that is not a whole, usable answer."""
    try:
        answer = json.loads(body)
    except ValueError as error:
        raise RolloutError(f"the answer is not JSON: {body[:80]!r}") from error
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not all(isinstance(c, dict) for c in choices):
        raise RolloutError(f"the answer has no list of choices: {body[:80]!r}")
    by_index = {choice.get("index"): choice for choice in choices}
    if len(choices) != border.group_size or set(by_index) != set(range(border.group_size)):
        raise RolloutError(
            f"asked for n={border.group_size} completions of one prompt, got choices {[c.get('index') for c in choices]}"
        )
    return [_read_choice(by_index[i], prompt, border) for i in range(border.group_size)]


def _read_choice(choice: dict[str, Any], prompt: Sequence[int], border: Border) -> Sampled:
    told = choice.get("prompt_token_ids")
    if told is not None and told != list(prompt):
        raise RolloutError("the server sampled after another prompt than the ids it was sent (prompt_token_ids differ)")
    logprobs = choice.get("logprobs")
    logprobs = logprobs if isinstance(logprobs, dict) else {}
    ids = _ids(choice, logprobs)
    scores = _scores(logprobs, ids)
    if not 1 <= len(ids) <= border.max_new_tokens:
        raise RolloutError(f"a completion has {len(ids)} ids, asked for were 1 to {border.max_new_tokens} (max_tokens)")
    if outside := [i for i in ids if not 0 <= i < border.vocab_size]:
        raise RolloutError(
            f"id {outside[0]} is outside the policy's vocabulary of {border.vocab_size}: the server has another model, or "
            f"samples ids that are padding"
        )
    reason = choice.get("finish_reason")
    if reason not in ("stop", "length"):
        raise RolloutError(f"a completion ended with finish_reason {reason!r}, which is neither stop nor length")
    for place, token in enumerate(ids):
        if token in border.eos_ids:  # the server may know fewer ends than the policy: what follows is no part of it
            return Sampled(ids[: place + 1], scores[: place + 1], True)
    if reason == "stop" and not border.stops:
        raise RolloutError(
            "a completion stopped without one of the policy's end-of-sequence ids: the server leaves the last id out, or its "
            "model ends with another one"
        )
    return Sampled(ids, scores, reason == "stop")


def _ids(choice: dict[str, Any], logprobs: dict[str, Any]) -> list[int]:
    exact = choice.get("token_ids")
    if isinstance(exact, list) and all(type(i) is int for i in exact):
        return exact
    tokens = logprobs.get("tokens")
    if isinstance(tokens, list) and tokens:
        found = [_TOKEN.fullmatch(t) if isinstance(t, str) else None for t in tokens]
        if all(found):
            return [int(match[1]) for match in found if match]
    raise RolloutError(
        "the answer has no token ids: neither choices[].token_ids (option return_token_ids of vLLM and SGLang) nor "
        '"token:123" in logprobs.tokens (option return_tokens_as_token_ids of vLLM). Use a version of the server that knows '
        "one of them; text is not tokenized again"
    )


def _scores(logprobs: dict[str, Any], ids: list[int]) -> list[float]:
    scores = logprobs.get("token_logprobs")
    if not isinstance(scores, list):
        raise RolloutError("the answer has no logprobs.token_logprobs: the server does not honour the option logprobs")
    if len(scores) != len(ids):
        raise RolloutError(f"{len(ids)} token ids came with {len(scores)} log-probs")
    for score in scores:
        if type(score) not in (int, float) or not math.isfinite(score) or score <= _MINUS_INFINITY:
            raise RolloutError(f"the log-prob of a sampled token is {score}, which is not a finite number")
    return [float(score) for score in scores]
