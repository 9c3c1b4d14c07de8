"""Products whose rows change their bits with the number of rows are found, wherever that begins, and replaced where they can
be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from grpo_server.engine.products import changes_bits_at, products_of, settle
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

HEIGHTS = list(range(32, 6145, 32))


class Fickle(nn.Linear):
    """Adds the last bit to its answer from so many rows on, as another kernel would."""

    edge = 4097

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return torch.nextafter(out, out + 1) if x.shape[-2] >= self.edge else out


class FickleConv(Conv1D):
    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return torch.nextafter(out, out + 1) if x.shape[-2] == 96 else out


def layer(kind: Any = nn.Linear, *sides: int, **options: Any) -> Any:
    torch.manual_seed(0)
    return kind(*(sides or (8, 12)), **options).requires_grad_(False)


def exactly(module: nn.Module) -> nn.Module:
    """The module with sums that no order can change: small whole numbers."""
    for parameter in module.parameters():
        parameter.copy_(torch.randint(-2, 3, parameter.shape))
    return module


@pytest.fixture(autouse=True)
def whole_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows whose products are exact, so that a test sees no other kernel than the one it makes."""
    monkeypatch.setattr(
        torch, "randn", lambda *shape, generator: torch.randint(-3, 4, shape, generator=generator).float()
    )


@pytest.mark.parametrize("edge", [4097, 6144, 64, 33])
def test_a_kernel_that_changes_at_some_height_is_caught(edge: int) -> None:
    fickle = exactly(layer(Fickle))
    fickle.edge = edge  # pyright: ignore[reportAttributeAccessIssue]
    [product] = products_of(nn.Sequential(fickle).modules())
    assert changes_bits_at(product, HEIGHTS) is not None
    problem = settle([product], HEIGHTS, trusted=False)
    assert problem is not None
    assert "8 to 12 with bias" in problem


def test_a_kernel_that_changes_at_one_height_alone_is_caught_and_replaced() -> None:
    module = exactly(layer(nn.Linear))
    own = module.forward
    module.forward = lambda x: own(x) + (x.shape[-2] == 2720)  # type: ignore[method-assign]
    [product] = products_of(nn.Sequential(module).modules())
    assert changes_bits_at(product, HEIGHTS) == 2720
    assert settle([product], HEIGHTS, trusted=False) is None
    assert changes_bits_at(product, HEIGHTS) is None
    x = torch.ones(1, 2720, 8)
    assert torch.equal(module(x), own(x))


def test_what_keeps_its_bits_is_left_as_it_is() -> None:
    module = exactly(layer(nn.Linear))
    own = module.forward
    assert settle(products_of(nn.Sequential(module).modules()), HEIGHTS, trusted=False) is None
    assert module.forward == own


def test_where_the_library_is_known_the_largest_batch_is_tried_all_the_same() -> None:
    assert settle(products_of(nn.Sequential(exactly(layer(Fickle))).modules()), HEIGHTS, trusted=True) is not None


def test_all_layers_of_a_kind_are_replaced_and_a_bias_makes_another_kind() -> None:
    layers = [layer(nn.Linear), layer(nn.Linear), layer(nn.Linear, 8, 12, bias=False), layer(nn.Linear, 12, 8)]
    kinds = products_of(nn.Sequential(*layers, nn.Embedding(5, 8), nn.LayerNorm(8)).modules())
    assert [len(kind.modules) for kind in kinds] == [2, 1, 1]


def test_the_layer_of_gpt2_is_multiplied_the_right_way_round() -> None:
    module = exactly(layer(FickleConv, 12, 8))  # outputs, inputs
    [product] = products_of(nn.Sequential(module).modules())
    assert (product.inputs, product.replaceable) == (8, False)
    plain = layer(Conv1D, 12, 8)
    [product] = products_of(nn.Sequential(plain).modules())
    own, x = plain.forward, torch.randint(-3, 4, (1, 300, 8)).float()
    plain.forward = lambda x: own(x) + (x.shape[-2] == 96)
    assert settle([product], HEIGHTS, trusted=False) is None
    torch.testing.assert_close(plain(x), own(x))


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.randint(-2, 3, (4, 12, 8)).float())


def test_experts_are_tried_at_any_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    [product] = products_of(nn.Sequential(Experts()).modules())
    assert product.any_rows
    seen: list[int] = []
    run = product.run
    monkeypatch.setattr(product, "run", lambda x: (seen.append(x.shape[1]), run(x))[1])
    assert changes_bits_at(product, [32, 64]) is None
    assert {1, 2, 3, 5, 7, 32} <= set(seen)
    monkeypatch.setattr(product, "run", lambda x: run(x) + (x.shape[1] == 3))
    assert (
        settle([product], [32, 64], trusted=True)
        == "the product 8 to 12 in Experts changes the bits of a row at 3 rows"
    )


def test_a_substitute_that_gives_other_numbers_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    module = exactly(layer(nn.Linear))
    own = module.forward
    module.forward = lambda x: own(x) + (x.shape[-2] == 64)  # type: ignore[method-assign]
    monkeypatch.setattr("grpo_server.engine.products.fixed_linear", lambda x, w, b: own(x) * 1.001)
    problem = settle(products_of(nn.Sequential(module).modules()), HEIGHTS, trusted=False)
    assert problem is not None
    assert "own numbers" in problem


def test_a_layer_that_accelerate_has_hooked_keeps_its_hook() -> None:
    module = exactly(layer(nn.Linear))
    own = module.forward
    module._old_forward = lambda x: own(x) + (x.shape[-2] == 64)  # type: ignore[assignment]
    module.forward = lambda x: module._old_forward(x)  # type: ignore[method-assign,operator]
    hooked = module.forward
    assert settle(products_of(nn.Sequential(module).modules()), HEIGHTS, trusted=False) is None
    assert module.forward is hooked
    x = torch.ones(1, 64, 8)
    assert torch.equal(module(x), own(x))
