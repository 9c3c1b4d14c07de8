"""How an adapter's products are made: at heights that keep their bits, or by a fixed shape; and beside compiled layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import saved
from grpo_server.engine.adapters.adapter import Adapter
from grpo_server.engine.adapters.applied import Span, applied
from grpo_server.engine.adapters.products import AtFixedShape, InOne, Pair
from grpo_server.engine.engine import TorchEngine
from torch import Tensor, nn
from tuned import engine_of, pieces_of, put_on, scores, written


@pytest.fixture
def engine(tmp_path: Path) -> TorchEngine:
    return engine_of(saved(tmp_path / "base"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(tmp_path / "adapter")


def depends_on_rows(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = kind.down

    def down(self: Any, x: Tensor, pair: Pair) -> Tensor:
        return own(self, x, pair) * (1.000002 if len(x) % 64 else 1.0)

    monkeypatch.setattr(kind, "down", down)


def test_products_of_a_fixed_shape_stand_in(engine: TorchEngine, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = scores(put_on(engine, path), pieces_of())
    depends_on_rows(InOne, monkeypatch)
    engine._known_products.clear()
    on_it = put_on(engine, path)
    assert isinstance(on_it._adapter.products, AtFixedShape)
    assert on_it.info.bitwise
    np.testing.assert_allclose(scores(on_it, pieces_of()), right, rtol=0, atol=1e-4)


def test_no_claim_where_no_product_keeps_its_bits(
    engine: TorchEngine, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in (InOne, AtFixedShape):
        depends_on_rows(kind, monkeypatch)
    assert not put_on(engine, path).info.bitwise


def test_rows_beyond_the_stream_are_made_up_and_dropped() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 6).requires_grad_(False), torch.randn(1, 40, 8)
    pair = Pair(torch.randn(3, 8), torch.randn(6, 3), 0.7)
    own = layer(x)

    def adapted(**height: int) -> Tensor:
        span = Span(Adapter({"layer": pair}), start=10, stop=38, of=40, **height)
        with applied({"layer": layer}, nn.Identity(), [span]):
            return layer(x)

    expected = own.clone()
    expected[:, 10:38] += 0.7 * (x[:, 10:38] @ pair.down.t() @ pair.up.t())
    for found in (adapted(height=28), adapted(height=30), adapted(height=64)):
        torch.testing.assert_close(found, expected)
        assert torch.equal(found[:, :10], own[:, :10])
        assert torch.equal(found[:, 38:], own[:, 38:])
    assert torch.equal(layer(x), own)


def test_compiled_layers_are_left_aside(engine: TorchEngine, path: Path) -> None:
    right = scores(put_on(engine, path), pieces_of())
    calls: list[int] = []

    def compiled(own: Any, number: int) -> Any:
        def forward(*args: Any, **more: Any) -> Any:
            calls.append(number)
            return own(*args, **more)

        forward._torchdynamo_orig_callable = own  # pyright: ignore[reportFunctionMemberAccess]
        return forward

    layers: Any = engine._model.model.layers
    for number, layer in enumerate(layers):
        layer.forward = compiled(layer.forward, number)
    first, second = put_on(engine, path, "first"), put_on(engine, path, "second")
    calls.clear()
    assert np.array_equal(scores(first, pieces_of()), right)
    assert calls == []
    scores(engine, pieces_of())
    assert calls == [0, 1]
    assert first.info.bitwise
    assert first.shares_batches_with(second)
    assert not first.shares_batches_with(engine)
    assert not engine.shares_batches_with(first)


def test_a_layer_that_sees_some_of_the_tokens_alone() -> None:
    layer = nn.Linear(8, 6).requires_grad_(False)
    span = Span(Adapter({"expert": Pair(torch.ones(3, 8), torch.ones(6, 3), 1.0)}), start=0, stop=9, of=40)
    with (
        applied({"expert": layer}, nn.Identity(), [span]),
        pytest.raises(ValueError, match="computes expert over some of the tokens alone"),
    ):
        layer(torch.ones(1, 39, 8))
