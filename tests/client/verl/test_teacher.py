"""A served teacher answers verl's call: a row about each next token, and an empty one at the end."""

from __future__ import annotations

import asyncio
import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from grpo_client import Status
from grpo_client.verl import ServedTeacher


class Client:
    status = Status.OK

    def __init__(self) -> None:
        self.asked: list[Any] = []

    async def score(self, prompts: Any, completions: Any, *, temperature: float, top_k: int) -> list[Any]:
        self.asked.append((prompts, completions, temperature, top_k))
        n = len(completions[0][0])
        extras = {
            "top_ids": np.arange(n * top_k, dtype=np.int32).reshape(n, top_k),
            "top_logprobs": -np.arange(n * top_k, dtype=np.float32).reshape(n, top_k),
        }
        return [SimpleNamespace(status=self.status, logprobs=-np.arange(1, n + 1, dtype=np.float32), extras=extras)]


def told(teacher: ServedTeacher, k: int, ids: list[int] | None = None, **media: Any) -> dict[str, Any]:
    asked = teacher.generate(
        "r", prompt_ids=ids or [5, 6, 7], sampling_params={"prompt_logprobs": k, "temperature": 1.0}, **media
    )
    return asyncio.run(asked).extra_fields


def test_rows_are_about_the_next_token() -> None:
    teacher = copy.copy(ServedTeacher("http://teacher"))  # by the very state that it is pickled with
    teacher._client = client = Client()  # pyright: ignore[reportAttributeAccessIssue]
    assert told(teacher, 0) == {"prompt_ids": [[6], [7], [0]], "prompt_logprobs": [[-1.0], [-2.0], [0.0]]}
    assert told(teacher, 2, image_data=None, video_data=[]) == {
        "prompt_ids": [[0, 1], [2, 3], [0, 0]],
        "prompt_logprobs": [[0.0, -1.0], [-2.0, -3.0], [0.0, 0.0]],
    }
    assert client.asked == [([[5]], [[[6, 7]]], 1.0, 0), ([[5]], [[[6, 7]]], 1.0, 2)]


def test_the_temperature_is_the_one_that_it_is_given() -> None:
    teacher = copy.copy(ServedTeacher(["http://one", "http://two"], temperature=0.5))
    teacher._client = client = Client()  # pyright: ignore[reportAttributeAccessIssue]
    told(teacher, 0)
    assert teacher.url == ["http://one", "http://two"]
    assert [temperature for _, _, temperature, _ in client.asked] == [0.5]
    with pytest.raises(ValueError, match="temperature must be above 0"):
        ServedTeacher("http://teacher", temperature=0.0)


def test_it_asks_for_the_teacher_that_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, dict[str, Any]]] = []

    def opened(url: Any, **options: Any) -> Client:
        seen.append((url, options))
        return Client()

    monkeypatch.setattr("grpo_client.verl.teacher.AsyncReferenceClient", opened)
    for name in (None, "judge"):
        told(copy.copy(ServedTeacher("http://teacher", reference_model=name)), 0)
    assert seen == [("http://teacher", {"fingerprint": "first", "model": name}) for name in (None, "judge")]


def test_what_it_cannot_score_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = ServedTeacher("http://teacher")
    teacher._client = Client()  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match="text alone"):
        told(teacher, 0, image_data=["a picture"])
    with pytest.raises(ValueError, match="fewer than two tokens"):
        told(teacher, 0, ids=[5])
    monkeypatch.setattr(Client, "status", Status.NONFINITE)
    with pytest.raises(ValueError, match="no finite score for every token of request r"):
        told(teacher, 0)
