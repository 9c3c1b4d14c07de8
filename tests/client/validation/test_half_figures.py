"""Log-probs of two bytes are looked at by their bits, and no other answer passes than in four bytes."""

from __future__ import annotations

import numpy as np
import pytest
from grpo_client import InvalidResponse, ReferenceInfo, ScoreRequest, ScoreResult
from grpo_client.validation.answers import check_answer

INFO = ReferenceInfo(model="m", fingerprint="f", version=1, dtype="float32", mode="exact", max_length=16, vocab_size=16)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ([-1.0, -np.inf], ""),
        ([-0.0, 0.0], ""),
        ([6e-8, -1.0], ""),
        ([-np.inf, -np.inf], ""),
        ([-65504.0, -1e-7], ""),
        ([-1.0, 0.25], "holds 0.25; no log-prob is above 0"),
        ([0.25, np.inf], "holds inf; no log-prob is above 0"),
        ([-1.0, np.nan], "is not a number"),
        ([-1.0, -np.nan], "is not a number"),
        ([np.nan, 0.25], "is not a number"),
    ],
)
def test_figures_of_two_bytes_are_looked_at_as_those_of_four(row: list[float], fault: str) -> None:
    for dtype in ("float32", "float16"):
        request = ScoreRequest.of([[1]], [[[2, 3], [4]]], top_k=2, top_dtype=dtype)
        result = ScoreResult(
            reference=INFO,
            normalizer="softmax",
            temperature=np.ones(1, np.float32),
            group_sizes=np.array([2], np.int32),
            completion_lengths=np.array([2, 1], np.int32),
            logprobs=np.array([-1.0, -2.0, np.nan], np.float32),
            status=np.array([0, 1], np.uint8),
            extras={
                "top_ids": np.zeros((3, 2), np.int32),
                "top_logprobs": np.array([[-1.0, -2.0], row, [np.nan, -np.nan]], dtype),
            },
        )
        if not fault:
            check_answer(result, request)
            continue
        with pytest.raises(InvalidResponse, match=fault):
            check_answer(result, request)
