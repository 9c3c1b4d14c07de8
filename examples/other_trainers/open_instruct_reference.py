"""open-instruct's grpo_fast with a served reference: no second model on its GPUs.

In a copy of open_instruct/grpo_fast.py's last lines, run with GRPO_REFERENCE_URL=http://host:8000, --load_ref_policy and a
--beta above 0 (GRPO_REFERENCE_MODEL names the reference, where the server hosts several):

    from open_instruct import grpo_fast
    from open_instruct_reference import trainer

    grpo_fast.PolicyTrainerRayProcess = trainer(grpo_fast)
    grpo_fast.main(args, tokenizer_config, model_config, streaming_config, vllm_config, tools_config)

Without --ref_policy_update_freq and sequence parallelism. This file must be importable on every node.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from grpo_client import ReferenceClient
from grpo_client.verl.rows import submit
from torch import Tensor

INVALID_LOGPROB = 1.0  # what open-instruct puts where there is no response


class Served(torch.nn.Module):
    """Stands where the reference model stood, without a weight."""

    def __init__(self, url: str, reference_model: str | None = None) -> None:
        super().__init__()
        self.client = ReferenceClient(url, fingerprint="first", model=reference_model)


def served_logprobs(client: ReferenceClient, data: Any, temperature: float) -> list[Tensor]:
    """For each micro-batch (B, T) its (B, T - 1) fp32: position t has the score of token t + 1, or INVALID_LOGPROB.

    data: `query_responses`, `attention_masks` and `response_masks`, a tensor for each micro-batch. A row holds several
    sequences, one after the other; `attention_masks` numbers them from 1, and is 0 in the padding.
    """
    prompts: list[list[int]] = []
    rest: list[list[int]] = []
    places: list[Tensor] = []
    out = [torch.full((ids.shape[0], ids.shape[1] - 1), INVALID_LOGPROB) for ids in data.query_responses]
    for scored, ids, numbers, masks in zip(
        out, data.query_responses, data.attention_masks, data.response_masks, strict=True
    ):
        for into, row, number, mask in zip(scored, ids, numbers, masks.bool(), strict=True):
            for sequence in number[number > 0].unique().tolist():
                where = (number == sequence).nonzero().flatten()
                acted = mask[where].nonzero().flatten()
                if not len(acted):
                    continue
                first, end = max(int(acted[0]), 1), int(acted[-1]) + 1
                prompts.append(row[where[:first]].tolist())
                rest.append(row[where[first:end]].tolist())
                places.append(into[where[first] - 1 : where[end - 1]])
    for place, score in zip(
        places, submit(client, prompts, rest, temperature).collect() if prompts else [], strict=True
    ):
        place.copy_(score)
    return [
        scored.masked_fill(~masks[:, 1:].bool().cpu(), INVALID_LOGPROB).to(masks.device)
        for scored, masks in zip(out, data.response_masks, strict=True)
    ]


def asking(compute_logprobs: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
    """open-instruct's own function, except for the served reference."""

    def computed(model: Any, data: Any, pad_token_id: int, temperature: float, **options: Any) -> list[Tensor]:
        if isinstance(model, Served):
            return served_logprobs(model.client, data, temperature)
        return compute_logprobs(model, data, pad_token_id, temperature, **options)

    return computed


def trainer(grpo_fast: Any) -> Any:
    """open-instruct's Ray actor; nothing is loaded as a reference in its process, and the server is asked for one."""
    import ray

    class Trainer(grpo_fast.PolicyTrainerRayProcess.__ray_metadata__.modified_class):
        def __init__(self, *args: Any, **options: Any) -> None:
            import open_instruct.grpo_fast as here  # this process's own

            url, name = os.environ["GRPO_REFERENCE_URL"], os.environ.get("GRPO_REFERENCE_MODEL")
            here.load_ref_policy = lambda **_: Served(url, name)
            here.grpo_utils.compute_logprobs = asking(here.grpo_utils.compute_logprobs)
            super().__init__(*args, **options)

    return ray.remote(num_gpus=1)(Trainer)
