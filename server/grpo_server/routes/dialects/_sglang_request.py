"""What SGLang's POST /generate takes: see `sglang`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.routes._bodies import IdLists, Numbers, form_of
from grpo_server.routes.dialects._asked_positions import FIELD, AskedPositions
from grpo_server.routes.dialects._refusals import generation
from grpo_server.routes.dialects._sampling import Flag, Sampling, changes_nothing, null_means

UNABLE = (
    "stream",
    "input_embeds",
    "image_data",
    "video_data",
    "audio_data",
    "positional_embed_overrides",
    "session_params",
    "lora_path",
    "lora_id",
    "custom_logit_processor",
    "multi_item_delimiter_indices",
    "return_sampling_mask",
    "return_hidden_states",
    "return_entropy",
    "return_flat_raw_top_logprobs",
)


class SglangSampling(Sampling):
    max_new_tokens: int | None = Field(None, description="0, or 1 for the likeliest next token as well.")


class SglangRequest(BaseModel):
    """Fields that only shape generated text are ignored."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = Field(None, description="Which reference; the default one.")
    text: str | list[str] | None = None
    input_ids: IdLists | None = None
    sampling_params: Annotated[
        SglangSampling | list[SglangSampling], BeforeValidator(lambda value: {} if value is None else value)
    ] = Field(default_factory=lambda: SglangSampling.model_validate({}), description="One, or one per prompt.")
    return_logprob: Annotated[bool | list[bool], null_means(False)] = False
    logprob_start_len: Annotated[int | Numbers, null_means(-1)] = Field(
        -1, description="First reported position; -1: none of the prompt's."
    )
    top_logprobs_num: Annotated[int | Numbers, null_means(0)] = Field(0, description="So many best tokens a position.")
    token_ids_logprob: IdLists | None = Field(
        None, description="Ids to score at every reported position; a list, or one per prompt."
    )
    token_ids_logprob_positions: AskedPositions | None = Field(
        None,
        description="For every position of the input ids of its own to score, [] for none; a list of such per prompt.",
    )
    return_text_in_logprobs: Flag = False
    stream: Any = Field(None, description="false")

    # Other input than tokens, other weights, other figures.
    input_embeds: Any = Field(None, description="null")
    image_data: Any = Field(None, description="null")
    video_data: Any = Field(None, description="null")
    audio_data: Any = Field(None, description="null")
    positional_embed_overrides: Any = Field(None, description="null")
    session_params: Any = Field(None, description="null")
    lora_path: Any = Field(None, description="null")
    lora_id: Any = Field(None, description="null")
    custom_logit_processor: Any = Field(None, description="null")
    multi_item_delimiter_indices: Any = Field(None, description="null")
    return_sampling_mask: Any = Field(None, description="false")
    return_hidden_states: Any = Field(None, description="false")
    return_entropy: Any = Field(None, description="false")
    return_flat_raw_top_logprobs: Any = Field(None, description="false")

    @model_validator(mode="after")
    def _one_of(self) -> SglangRequest:
        if (self.text is None) == (self.input_ids is None):
            raise ValueError("send either text or input_ids")
        return self

    def check(self) -> None:
        """Raises ServiceError (422) for what is not done here."""
        for name in UNABLE:
            if not changes_nothing(name, value := getattr(self, name)):
                raise generation(f"{name} is {value!r:.60}", name, f"leave {name} out")
        if self.token_ids_logprob is not None and self.token_ids_logprob_positions is not None:
            raise ServiceError(
                ErrorCode.INVALID_VALUE, f"send either token_ids_logprob or {FIELD}, not both", param=FIELD
            )
        if self.return_logprob is not True and not (isinstance(self.return_logprob, list) and all(self.return_logprob)):
            raise generation("return_logprob is not set", "return_logprob", "send return_logprob=true")

    @property
    def single(self) -> bool:
        """A lone prompt is answered by a lone object."""
        if self.input_ids is not None:
            return form_of(self.input_ids) == "ids"
        return isinstance(self.text, str)
