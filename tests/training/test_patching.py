"""The global patch: the whole contract of F.cross_entropy, put back whatever happens, and no patch over another's."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from grpo_numerics import symlog
from grpo_training.patching import (
    PatchConflict,
    disable_cross_entropy_patch,
    enable_cross_entropy_patch,
    patch_cross_entropy,
)
from torch import Tensor, nn

TORCHS = F.cross_entropy


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    yield
    F.cross_entropy = TORCHS


def draw(*shape: int) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


CASES: dict[str, tuple[Tensor, Tensor, dict[str, Any]]] = {
    "plain": (draw(5, 7), torch.tensor([0, 3, 6, 2, 2]), {}),
    "one row": (draw(7), torch.tensor(4), {}),
    "weight, sum": (draw(5, 7), torch.tensor([0, 3, 6, 2, 2]), {"weight": torch.arange(7.0), "reduction": "sum"}),
    "ignored, none": (draw(5, 7), torch.tensor([0, -1, 6, 2, -1]), {"ignore_index": -1, "reduction": "none"}),
    "smoothed": (draw(5, 7), torch.tensor([0, 3, -100, 2, 2]), {"label_smoothing": 0.2}),
    "images": (draw(2, 7, 3, 4), torch.randint(7, (2, 3, 4), generator=torch.Generator().manual_seed(1)), {}),
    "probabilities": (draw(5, 7), draw(5, 7).softmax(1), {"label_smoothing": 0.1}),
    "empty mean": (draw(2, 7), torch.tensor([-100, -100]), {}),
    "bf16": (draw(5, 7).bfloat16(), torch.tensor([0, 3, 6, 2, 2]), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_whole_contract(case: str) -> None:
    logits, target, options = CASES[case]
    expected = TORCHS(symlog(logits), target, **options)
    with patch_cross_entropy():
        got = F.cross_entropy(logits, target, **options)
    assert torch.equal(got, expected) or (got.isnan() & expected.isnan()).all()
    assert got.isnan().any() == (case == "empty mean")


def test_modules_are_reached_and_put_back() -> None:
    logits, target, _ = CASES["plain"]
    criterion = nn.CrossEntropyLoss()
    plain = criterion(logits, target)
    with patch_cross_entropy() as patch:
        assert patch.active
        assert torch.equal(criterion(logits, target), TORCHS(symlog(logits), target))
    assert not patch.active
    assert F.cross_entropy is TORCHS
    assert torch.equal(criterion(logits, target), plain)


def test_an_error_inside_puts_it_back() -> None:
    with pytest.raises(KeyError), patch_cross_entropy():
        raise KeyError
    assert F.cross_entropy is TORCHS


def test_enable_and_disable() -> None:
    disable_cross_entropy_patch()  # nothing there: nothing happens
    enable_cross_entropy_patch()
    with pytest.raises(PatchConflict, match="patched already"):
        enable_cross_entropy_patch()
    disable_cross_entropy_patch()
    assert F.cross_entropy is TORCHS


def test_another_patch_is_neither_covered_nor_removed() -> None:
    @functools.wraps(TORCHS)  # it even bears torch's name
    def liger_cross_entropy(*args: Any, **kwargs: Any) -> Tensor:
        return TORCHS(*args, **kwargs)

    F.cross_entropy = liger_cross_entropy
    with pytest.raises(PatchConflict, match="turn that patch off"):
        enable_cross_entropy_patch()
    with pytest.raises(PatchConflict, match="must remove it"):
        disable_cross_entropy_patch()
    assert F.cross_entropy is liger_cross_entropy


def test_a_patch_over_ours_is_named() -> None:
    patch = enable_cross_entropy_patch()
    F.cross_entropy = nn.functional.nll_loss
    with pytest.raises(PatchConflict, match=r"torch\.nn\.functional\.nll_loss now"):
        patch.remove()


def test_a_model_that_goes_around_it_is_named() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return x

    forward.__module__ = "cut_cross_entropy.transformers.llama"
    model = nn.Sequential(type("Cut", (nn.Module,), {"forward": forward})())
    with pytest.raises(PatchConflict, match=r"Cut\.forward is cut_cross_entropy\.transformers\.llama"):
        enable_cross_entropy_patch(model=model)
    assert F.cross_entropy is TORCHS
