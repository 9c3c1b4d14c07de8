"""NeMo-RL's GRPO with a served reference: no reference model is loaded into the policy's workers.

In a copy of NeMo-RL's examples/run_grpo.py:

    from nemo_rl.models.policy.lm_policy import Policy
    from nemo_rl_reference import served

    setup(..., policy_factory=served(Policy, "http://host:8000", temperature=config.policy["generation"]["temperature"]))

For the trainer without a data plane, which calls `get_reference_policy_logprobs` with whole rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from grpo_client import ReferenceClient
from grpo_client.verl.rows import submit
from torch import Tensor


def reference_logprobs(client: ReferenceClient, data: Mapping[str, Tensor], temperature: float) -> Tensor:
    """(B, S) fp32: position i has the score of token i, from the first token on that `token_mask` trains; 0 elsewhere.

    data: `input_ids` (B, S), padded on the right, `input_lengths` (B,), `token_mask` (B, S).
    """
    ids, lengths, trained = data["input_ids"], data["input_lengths"].tolist(), data["token_mask"].bool()
    # A row begins with its prompt; a first token has no score.
    starts = [max(int(row.long().argmax()), 1) for row in trained]
    prompts = [row[:start].tolist() for row, start in zip(ids, starts, strict=True)]
    rest = [row[start:end].tolist() for row, start, end in zip(ids, starts, lengths, strict=True)]
    scores = submit(client, prompts, rest, temperature).collect()
    out = torch.zeros(ids.shape, dtype=torch.float32)
    for row, start, score in zip(out, starts, scores, strict=True):
        row[start : start + len(score)] = score
    return out


def served(
    policy: type[Any], url: str, *, temperature: float, reference_model: str | None = None
) -> Callable[..., Any]:
    """What `setup(policy_factory=...)` takes, made of NeMo-RL's Policy. reference_model: where the server hosts several."""

    class Served(policy):
        def __init__(self, **given: Any) -> None:
            super().__init__(**given | {"init_reference_model": False})
            self._reference = ReferenceClient(url, fingerprint="first", model=reference_model)

        def get_reference_policy_logprobs(
            self, data: Any, micro_batch_size: int | None = None, timer: Any = None
        ) -> Any:
            return type(data)(reference_logprobs=reference_logprobs(self._reference, data, temperature))

    return Served
