"""ms-swift's GKD reads a teacher through `fetch_teacher_logprobs`; this is that function over the native wire.

    from swift.rlhf_trainers import gkd_helpers   # the module that holds it in your version
    from swift_teacher import fetch_teacher_logprobs

    gkd_helpers.fetch_teacher_logprobs = functools.partial(fetch_teacher_logprobs, temperature=args.temperature)

It sends the ids as they are, of text alone, and answers what ms-swift's own does: the k best of every position, of which row t
predicts token t + 1. ms-swift divides log-probs by the temperature in its loss, which over k ids is not exact; here the
teacher is asked at it, so set the loss's to 1. A sequence without a finite score is an error, and not a row of -inf.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from grpo_client import ReferenceClient, Status
from torch import Tensor


def fetch_teacher_logprobs(
    base_url: str,
    input_ids: Sequence[Sequence[int]],
    topk: int = 20,
    timeout: float = 300.0,
    mm_raw_inputs: object = None,
    *,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Log-probs (B, T - 1, k) fp32, -inf beyond a sequence's end, and ids (B, T - 1, k) int64; T is the longest's length.

    Raises ValueError for a sequence without a finite score, for images, and for a sequence of fewer than two tokens.
    """
    if mm_raw_inputs is not None:
        raise ValueError("the teacher scores text alone: leave images and other media out")
    if any(len(ids) < 2 for ids in input_ids):
        raise ValueError("a sequence of fewer than two tokens has nothing to be scored: leave it out of the batch")
    with ReferenceClient(base_url, timeout=timeout) as client:
        result = client.score(
            [list(ids[:1]) for ids in input_ids],
            [list(ids[1:]) for ids in input_ids],
            temperature=temperature,
            top_k=topk,
        )
    if (bad := int((result.status != Status.OK).sum())) > 0:
        raise ValueError(f"the teacher has no finite log-prob for {bad} of {len(result)} sequences")
    width = max(len(ids) for ids in input_ids) - 1
    logprobs = torch.full((len(result), width, topk), -torch.inf)
    indices = torch.zeros(len(result), width, topk, dtype=torch.int64)
    for row, scores in enumerate(result):
        logprobs[row, : len(scores)] = torch.from_numpy(scores.extras["top_logprobs"].astype("float32"))
        indices[row, : len(scores)] = torch.from_numpy(scores.extras["top_ids"].astype("int64"))
    return logprobs, indices
