"""A served teacher for verl's on-policy distillation, in place of a rollout engine that holds the teacher's weights.

It stands in the dict that a trainer's `get_teacher_client` returns, `{"default": ServedTeacher(url)}`, and is pickled into the
agent loops: the connection is opened where it is first used. verl asks a teacher at temperature 1, since vLLM knows no other
there; give `temperature` for the rollouts' own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grpo_client.async_client import AsyncReferenceClient
from grpo_client.protocol import Status


@dataclass(slots=True)
class TeacherOutput:
    """What verl reads of a `TokenOutput`. extra_fields: `prompt_ids` and `prompt_logprobs`, each S rows of max(k, 1): row t is
    about token t + 1, the last one is empty."""

    token_ids: list[int]
    extra_fields: dict[str, Any]


class ServedTeacher:
    """Takes the place of verl's LLMServerClient. url: of the server that hosts the teacher, or of several that host it alike.
    temperature: in place of what verl sends; ValueError for one that is not above 0. reference_model: the teacher's name, where
    the server hosts several."""

    def __init__(
        self, url: str | Sequence[str], *, temperature: float | None = None, reference_model: str | None = None
    ) -> None:
        if temperature is not None and not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be above 0 and finite, got {temperature!r}")
        self.url, self.temperature, self.reference_model = url, temperature, reference_model
        self._client: AsyncReferenceClient | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "temperature": self.temperature, "reference_model": self.reference_model}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.url, self.temperature, self._client = state["url"], state["temperature"], None
        self.reference_model = state["reference_model"]

    async def generate(
        self, request_id: str, *, prompt_ids: Sequence[int], sampling_params: dict[str, Any], **media: Any
    ) -> TeacherOutput:
        """prompt_ids: prompt and response in one. sampling_params: `prompt_logprobs` is k; 0 asks of the tokens themselves.
        `temperature`, where it is there, is that of the scores.

        Raises ValueError for images, video and audio, fewer than two ids, and a score that is not finite.
        """
        if any(value is not None and len(value) for value in media.values() if hasattr(value, "__len__")):
            raise ValueError("a served teacher scores text alone: no images, video or audio")
        if len(prompt_ids) < 2:
            raise ValueError("a sequence of fewer than two tokens has nothing to score")
        if self._client is None:
            self._client = AsyncReferenceClient(self.url, fingerprint="first", model=self.reference_model)
        k = int(sampling_params.get("prompt_logprobs") or 0)
        ids = [int(i) for i in prompt_ids]
        # Where the prompt ends is lost in this call: every token after the first is asked of.
        temperature = self.temperature or float(sampling_params.get("temperature", 1.0))
        result = await self._client.score([ids[:1]], [[ids[1:]]], temperature=temperature, top_k=k)
        [completion] = list(result)
        if completion.status is not Status.OK:
            raise ValueError(f"the teacher has no finite score for every token of request {request_id}")
        if k:
            about, scores = completion.extras["top_ids"].tolist(), completion.extras["top_logprobs"].tolist()
        else:
            about, scores = [[i] for i in ids[1:]], [[float(x)] for x in completion.logprobs]
        width = max(k, 1)
        return TeacherOutput([0], {"prompt_ids": [*about, [0] * width], "prompt_logprobs": [*scores, [0.0] * width]})
