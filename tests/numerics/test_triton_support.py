"""What kernels need of a machine, and what to do where it is missing."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator

import pytest
import torch
from grpo_numerics import triton_support
from grpo_numerics.triton_support import interpreted, lacking


@pytest.fixture(autouse=True)
def looked_up_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    lacking.cache_clear()
    yield
    lacking.cache_clear()


def test_without_triton_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert "pip install triton" in lacking()


@pytest.mark.parametrize("there", ["gcc", "clang", ""])
def test_its_launchers_need_a_compiler(there: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: name if name == there else None)
    assert bool(lacking()) is not bool(there)
    assert there or "apt install gcc" in lacking()


@pytest.mark.parametrize("variable", ["CC", "TRITON_INTERPRET"])
def test_a_compiler_may_be_named_and_the_interpreter_needs_none(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setenv(variable, "1")
    assert not lacking()


def test_the_interpreter_is_given_no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_support, "is_interpreting", lambda: True)
    assert interpreted(torch.zeros(1))
    assert not interpreted(torch.zeros(1, dtype=torch.bfloat16))
