"""Which code computes a head, and that a head on a GPU says why it has to do without the kernels."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from grpo_numerics.head import choice


def on_gpu(dtype: torch.dtype = torch.bfloat16, *, contiguous: bool = True) -> Any:
    """As much of a CUDA tensor as the choice looks at."""
    return SimpleNamespace(dtype=dtype, device="cuda:0", is_cuda=True, is_contiguous=lambda: contiguous)


@pytest.fixture(autouse=True)
def a_gpu_of_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(choice, "lacking", lambda: "")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    choice._tell.cache_clear()


@pytest.mark.parametrize(
    ("hidden", "weight", "reason"),
    [
        (on_gpu(), on_gpu(), ""),
        (on_gpu(torch.float32), on_gpu(torch.float32), ""),
        (on_gpu(torch.float32), on_gpu(), "not of one dtype"),
        (on_gpu(torch.float64), on_gpu(torch.float64), "float64 is none of theirs"),
        (on_gpu(), on_gpu(contiguous=False), "not contiguous"),
    ],
)
def test_a_head_on_a_gpu_says_once_why_not(
    hidden: Any, weight: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = [choice.on_triton(hidden, weight) for _ in range(3)]
    assert found == [not reason] * 3
    assert len(caplog.messages) == bool(reason)
    assert all(reason in message for message in caplog.messages)


def test_old_gpus_and_missing_triton(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert not choice.on_triton(on_gpu(), on_gpu())
    assert "compute capability 7.5" in caplog.text
    monkeypatch.setattr(choice, "lacking", lambda: "Triton is not installed (pip install triton)")
    assert not choice.on_triton(on_gpu(), on_gpu())
    assert "pip install triton" in caplog.text


def test_a_cpu_is_no_reason_to_say_anything(caplog: pytest.LogCaptureFixture) -> None:
    x = torch.zeros(2, 4)
    assert not choice.on_triton(x, cast(Any, x))
    assert not caplog.messages
