"""Sampling parameters of the foreign dialects: what is honoured, what is refused by its name, what makes no difference.

The figures given are those of the reference's own distribution at a temperature. A parameter that describes another one (a
truncated, penalised or constrained distribution, several samples) is refused unless its value changes nothing. What shapes only
the text after the first new token, or how a server goes about its work (seed, stop, ignore_eos, priority, cache_salt ...),
makes no difference here and is not looked at. null is the default, everywhere.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
from grpo_client.protocol import ReferenceInfo
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from grpo_server.config import ServerConfig
from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.routes.dialects._refusals import generation

WHOLE_VOCABULARY = -1
# SGLang's own default is 2**30: more than any vocabulary has is all of it.
_ALL = 1 << 20
_NEUTRAL = {
    "top_p": 1,
    "typical_p": 1,
    "min_p": 0,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "repetition_penalty": 1,
    "min_tokens": 0,
    "min_new_tokens": 0,
    "n": 1,
    "best_of": 1,
}
_WITHOUT_EFFECT_WHEN_GREEDY = frozenset({"top_p", "top_k", "typical_p", "min_p"})


def null_means(default: Any) -> BeforeValidator:
    """For a field that takes null for its default."""
    return BeforeValidator(lambda value: default if value is None else value)


def _count(value: Any) -> Any:
    """true is one, as vLLM reads it; false is none at all."""
    return {True: 1, False: None}[value] if isinstance(value, bool) else value


# So many best tokens, or WHOLE_VOCABULARY; None: not asked.
Best = Annotated[int | None, Field(ge=WHOLE_VOCABULARY), BeforeValidator(_count)]
Flag = Annotated[bool, null_means(False)]


class Sampling(BaseModel):
    """Fields that are not named here shape only text that is not generated, and are ignored."""

    model_config = ConfigDict(extra="ignore")
    # names of further fields that must be left out
    unable: ClassVar[tuple[str, ...]] = ()

    temperature: float | None = Field(None, description="Logits are divided by it. 0 (greedy) scores at 1.")
    n: int | None = Field(None, description="1")
    best_of: int | None = Field(None, description="1")
    top_p: float | None = Field(None, description="1: the distribution is not truncated.")
    top_k: int | None = Field(None, description="0 or -1")
    min_p: float | None = Field(None, description="0")
    typical_p: float | None = Field(None, description="1")
    frequency_penalty: float | None = Field(None, description="0")
    presence_penalty: float | None = Field(None, description="0")
    repetition_penalty: float | None = Field(None, description="1")
    min_tokens: int | None = Field(None, description="0")
    min_new_tokens: int | None = Field(None, description="0")
    logit_bias: Any = Field(None, description="null: the reference's own distribution is scored.")
    use_beam_search: Any = Field(None, description="false")
    stream: Any = Field(None, description="false")
    # The likeliest next token and its log-prob are the reference's, whatever grammar or list a client would hold it to.
    bad_words: Any = Field(None, description="null")
    allowed_token_ids: Any = Field(None, description="null")
    logits_processors: Any = Field(None, description="null")
    custom_logit_processor: Any = Field(None, description="null")
    structured_outputs: Any = Field(None, description="null")
    response_format: Any = Field(None, description="null, or of type text")
    guided_json: Any = Field(None, description="null")
    guided_regex: Any = Field(None, description="null")
    guided_choice: Any = Field(None, description="null")
    guided_grammar: Any = Field(None, description="null")
    json_schema: Any = Field(None, description="null")
    regex: Any = Field(None, description="null")
    ebnf: Any = Field(None, description="null")
    structural_tag: Any = Field(None, description="null")
    custom_params: Any = Field(None, description="null")
    vllm_xargs: Any = Field(None, description="null")
    watermarking: Any = Field(None, description="null")
    trace_decode_token_ids: Any = Field(None, description="null")
    # Other input than the tokens, other weights than the reference's.
    prompt_embeds: Any = Field(None, description="null")
    lora_request: Any = Field(None, description="null")
    lora_path: Any = Field(None, description="null")

    def refuse_shaping(self, prefix: str = "") -> None:
        """Raises ServiceError (422) for the first field that asks for other figures than the reference's own."""
        for name in [*(n for n in Sampling.model_fields if n != "temperature"), *self.unable]:
            value = getattr(self, name)
            greedy = self.temperature == 0 and name in _WITHOUT_EFFECT_WHEN_GREEDY
            if not greedy and not changes_nothing(name, value):
                raise generation(f"{name} is {value!r:.60}", prefix + name, f"leave {name} out")


def changes_nothing(name: str, value: Any) -> bool:
    """Whether a field of that name with that value leaves every figure as it is."""
    if value is None:
        return True
    if isinstance(value, np.ndarray):  # a long list of numbers
        return False
    if name in _NEUTRAL:
        return value == _NEUTRAL[name]
    if name == "top_k":
        return not 0 < value < _ALL
    if isinstance(value, list):
        return all(entry is None or entry is False for entry in value)
    return value is False or value in ("", {}, {"type": "text"})


def best_count(value: int | None, name: str, info: ReferenceInfo, config: ServerConfig) -> int:
    """How many best tokens a position that is. Raises ServiceError (422) when the server does not give so many."""
    most = min(config.max_top_k, info.vocab_size)
    if value == WHOLE_VOCABULARY and most < info.vocab_size:
        raise ServiceError(
            ErrorCode.INVALID_VALUE,
            f"{name} is -1, which means the whole vocabulary of {info.vocab_size} ids; this server gives at most {most} a "
            "position (--max-top-k); ask for fewer, or for the ids that you need by POST /v1/logprobs with token_ids",
            param=name,
        )
    count = info.vocab_size if value == WHOLE_VOCABULARY else value or 0
    if count > most:
        raise ServiceError(
            ErrorCode.INVALID_VALUE,
            f"{name} asks for {count} ids a position; this server gives at most {most} (--max-top-k)",
            param=name,
        )
    return count
