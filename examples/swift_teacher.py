"""A served teacher for ms-swift's GKD and OPD (4.6), which asks a vLLM by chat messages; here its trainer asks by token ids.

    from swift_teacher import use_served_teachers

    use_served_teachers()          # before the trainer is made, with --teacher_model_server URL

The trainer's own template makes the ids, of the very responses that were sampled, so that the teacher scores what the student
is trained on, and `vllm` need not be installed. Any k goes. ms-swift divides the teacher's log-probs by the temperature in its
loss, which over k ids is not exact: give the temperature to `use_served_teachers`, and leave the loss's at 1. A sequence
without a finite score is an error, and not a row of -inf; so are images and other media.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from grpo_client import ReferenceClient, Status

Rows = tuple[list[Any], list[Any]]


def use_served_teachers(*, temperature: float = 1.0, reference_model: str | None = None) -> None:
    """Let ms-swift's trainers ask grpo-server; `--teacher_model_server` may also be its list of URLs with tags.

    reference_model: the teacher's name, where its server hosts several.
    """
    mixin: Any = importlib.import_module("swift.rlhf_trainers.rollout_mixin")

    def connected(base_urls: Sequence[str]) -> ReferenceClient:
        return ReferenceClient(base_urls[0], model=reference_model)

    def infer(
        trainer: Any, handle: Mapping[str, Any], topk: int, teacher_client: ReferenceClient | None = None
    ) -> list[Rows]:
        requests = handle["all_requests"]
        if any(getattr(request, kind, None) for request in requests for kind in ("images", "videos", "audios")):
            raise ValueError("the teacher scores text alone: leave images and other media out")
        sequences = [trainer.template.encode(request)["input_ids"] for request in requests]
        return teacher_rows(teacher_client or trainer.teacher_clients[0], sequences, topk, temperature)

    mixin.VLLMInferClient = connected
    mixin.RolloutTrainerMixin._infer_teacher_requests = infer


def teacher_rows(
    client: ReferenceClient, sequences: Sequence[Sequence[int]], topk: int, temperature: float = 1.0
) -> list[Rows]:
    """What ms-swift's `parse_prompt_logprobs` makes of an answer: for each sequence of L tokens, log-probs and ids of L - 1
    positions, row t of token t + 1: the `topk` best, or with 0 the token itself.

    Raises ValueError for a sequence of fewer than two tokens, or without a finite score.
    """
    if not sequences:
        return []
    if any(len(ids) < 2 for ids in sequences):
        raise ValueError("a sequence of fewer than two tokens has nothing to be scored: leave it out of the batch")
    behind = [list(ids[1:]) for ids in sequences]
    result = client.score(
        [list(ids[:1]) for ids in sequences], [[ids] for ids in behind], temperature=temperature, top_k=topk
    )
    if (bad := int((result.status != Status.OK).sum())) > 0:
        raise ValueError(f"the teacher has no finite log-prob for {bad} of {len(result)} sequences")
    if topk:
        return [(list(scores.extras["top_logprobs"]), list(scores.extras["top_ids"])) for scores in result]
    return [
        (scores.logprobs[:, None].tolist(), np.asarray(ids)[:, None].tolist())
        for scores, ids in zip(result, behind, strict=True)
    ]
