"""verl's distillation asks replicas that it starts itself and takes no URL; this is a client of that kind for a grpo-server.

    manager = AsyncTeacherLLMServerManager(config, teacher_client={"math": VerlTeacher("http://teacher:8001")})

One `VerlTeacher` for each name in `distillation.teacher_models`; the sample's `teacher_key` routes as ever. verl reads
`extra_fields["prompt_ids"]` and `["prompt_logprobs"]`, (S, k) each for S tokens, or (S, 1) of the sampled tokens where it asks
for no more. Row t is of token t + 1; there is nothing after the last one, whose row is zeros that the response mask hides.

verl asks at temperature 1, since vLLM knows no other there; give `temperature` for the rollouts' own. A sequence without a
finite score is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from grpo_client import AsyncReferenceClient, Status


class VerlTeacher:
    """Answers `generate` as verl's `LLMServerClient` does when it is asked for prompt log-probs."""

    def __init__(self, url: str | Sequence[str], *, temperature: float | None = None, **options: Any) -> None:
        """temperature: in place of what verl sends. options: of the client, such as api_key and max_wait."""
        self._client = AsyncReferenceClient(url, fingerprint="first", **options)
        self._temperature = temperature

    async def generate(
        self, request_id: str, *, prompt_ids: Sequence[int], sampling_params: Mapping[str, Any], **media: Any
    ) -> SimpleNamespace:
        """Raises ValueError for images and other media, and for a sequence that has no finite score."""
        if any(media.values()):
            raise ValueError(f"the teacher scores text alone: leave {', '.join(k for k, v in media.items() if v)} out")
        k = int(sampling_params["prompt_logprobs"])
        temperature = self._temperature or float(sampling_params.get("temperature", 1.0))
        result = await self._client.score(
            [list(prompt_ids[:1])], [[list(prompt_ids[1:])]], temperature=temperature, top_k=k
        )
        if result.status[0] != Status.OK:
            raise ValueError(f"the teacher has no finite log-prob for request {request_id}")
        if k:
            ids, logprobs = result.extras["top_ids"], result.extras["top_logprobs"]
        else:
            ids, logprobs = np.array(prompt_ids[1:], dtype=np.int32)[:, None], result.logprobs[:, None]
        nothing = np.zeros((1, ids.shape[1]))
        told = {
            "prompt_ids": np.vstack([ids, nothing.astype(ids.dtype)]),
            "prompt_logprobs": np.vstack([logprobs, nothing]),
        }
        return SimpleNamespace(extra_fields={name: values.tolist() for name, values in told.items()})

    async def close(self) -> None:
        await self._client.aclose()
