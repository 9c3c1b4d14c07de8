"""What only the model's figures decide, and what a client's own arguments can get wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from grpo_client import ProtocolError, ScoreRequest, check_request
from grpo_client.validation.request import check_structure

MODEL: dict[str, int] = {"vocab_size": 10, "max_length": 5, "max_top_k": 4}


def test_a_request_at_every_limit_passes() -> None:
    check_request(ScoreRequest.of([[9, 0]], [[[9, 9, 9], []]], top_k=4), **MODEL)


@pytest.mark.parametrize(
    ("request_", "status", "param"),
    [
        (ScoreRequest.of([[1], [10]], [[[1]], [[1]]]), 422, "groups[1].prompt"),
        (ScoreRequest.of([[1]], [[[1], [2, 10]]]), 422, "groups[0].completions[1]"),
        (ScoreRequest.of([[1]], [[[1]]], token_ids=[[[[10]]]]), 422, "token_ids[0][0]"),
        (ScoreRequest.of([[1, 1, 1]], [[[1], [1, 1, 1]]]), 413, "groups[0].completions[1]"),
        (ScoreRequest.of([[1]], [[[1]]], top_k=5), 422, "top_k"),
        (ScoreRequest.of([[1]], [[[1]]], token_ids=[[[[1, 2, 3, 4, 5]]]]), 422, "token_ids"),
    ],
)
def test_what_the_model_cannot_do(request_: ScoreRequest, status: int, param: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        check_request(request_, **MODEL)
    assert (caught.value.status, caught.value.param) == (status, param)


def test_top_k_beyond_the_vocabulary() -> None:
    with pytest.raises(ProtocolError, match="vocabulary has 10"):
        check_request(ScoreRequest.of([[1]], [[[1]]], top_k=11), vocab_size=10, max_length=9, max_top_k=50)


@pytest.mark.parametrize(
    "arguments",
    [
        {"prompts": [], "completions": []},
        {"prompts": [[]], "completions": [[[1]]]},
        {"prompts": [[1]], "completions": [[]]},
        {"prompts": [[1]], "completions": [[[1]]], "temperature": float("nan")},
        {"prompts": [[1]], "completions": [[[1]]], "normalizer": "sigmoid"},
        {"prompts": [[1]], "completions": [[[1]]], "extras": ["logits"]},
        {"prompts": [[1]], "completions": [[[1]]], "top_k": -1},
        {"prompts": [[1]], "completions": [[[1], [2]]], "token_ids": [[[[1, 2]], [[3]]]]},
    ],
)
def test_structure_is_checked_before_anything_is_sent(arguments: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        check_structure(ScoreRequest.of(**arguments))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"prompts": [[1]], "completions": []}, "one entry per group"),
        ({"prompts": [[1]], "completions": [[[1]]], "temperature": [1.0, 2.0]}, "one entry per group"),
        ({"prompts": [[1.5]], "completions": [[[1]]]}, r"prompts\[0\]"),
        ({"prompts": [[True]], "completions": [[[1]]]}, r"prompts\[0\]"),
        ({"prompts": [[1]], "completions": [[[1], [2**40]]]}, r"completions\[1\]|completions\[0\]\[1\]"),
        ({"prompts": [[-1]], "completions": [[[1]]]}, r"prompts\[0\]"),
        ({"prompts": [[[1]]], "completions": [[[1]]]}, r"prompts\[0\]"),
        ({"prompts": [[1]], "completions": [[[1]]], "token_ids": []}, "one entry per group"),
        ({"prompts": [[1]], "completions": [[[1]]], "token_ids": [[]]}, "one entry per completion"),
        ({"prompts": [[1]], "completions": [[[1, 2]]], "token_ids": [[[[1]]]]}, "one row of ids"),
    ],
)
def test_lists_that_are_no_request(arguments: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        ScoreRequest.of(**arguments)


def test_arrays_of_any_integer_type_are_taken() -> None:
    request = ScoreRequest.of([np.array([1, 2], np.int64)], [[np.array([3], np.uint8), np.array([], np.int64)]])
    assert request.groups[0].prompt.dtype == request.groups[0].completions[0].dtype == np.int32
    assert request.completion_lengths.tolist() == [1, 0]


def test_token_ids_beside_an_empty_completion() -> None:
    request = ScoreRequest.of([[1]], [[[], [2]]], token_ids=[[[], [[3, 4]]]])
    check_structure(request)
    assert [t.shape for t in request.groups[0].token_ids or ()] == [(0, 0), (1, 2)]
