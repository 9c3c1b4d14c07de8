"""A forward of the base in which rows pass the products of their adapters.

A layer's own product is made once, over all rows; behind it each adapter adds scale * (x @ down^T) @ up^T to its own rows, in
place. The layers are as they were when the block is left: parameters are never touched.

Rounding, in the base's type: x @ down^T is rounded once, and once more with the layer's own product when both are summed, in
fp32 inside the product. In bfloat16 a layer's output so has two roundings of its own size (peft's has three), and one of its
adapter's. In float32 it is peft's up to the order of sums.

Bits. A product may change the bits of a row with the number of its rows. So an adapter's rows are multiplied at heights that
were tried: behind its last row the next adapter's come along, and their share of x @ down^T is set to zero, which adds zero to
them. Nothing here waits for a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from grpo_numerics.head.tiles import padded
from grpo_numerics.products import fixed_linear
from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from .adapter import Adapter, Pair


class Products(Protocol):
    """The two products of a pair. low (H, r), of which `rows` rows count; out (H, N)."""

    def down(self, x: Tensor, pair: Pair) -> Tensor: ...

    def up(self, out: Tensor, low: Tensor, pair: Pair, rows: int) -> None: ...


class InOne:
    """Added inside the second product, in fp32: one rounding."""

    def down(self, x: Tensor, pair: Pair) -> Tensor:
        return linear(x, pair.down)

    def up(self, out: Tensor, low: Tensor, pair: Pair, rows: int) -> None:
        low[rows:] = 0
        out.addmm_(low, pair.up.t(), alpha=pair.scale)


class AtFixedShape:
    """For devices whose own products change a row's bits with the number of rows."""

    def down(self, x: Tensor, pair: Pair) -> Tensor:
        return fixed_linear(x, pair.down)

    def up(self, out: Tensor, low: Tensor, pair: Pair, rows: int) -> None:
        out[:rows] += fixed_linear(low[:rows], pair.up).mul_(pair.scale)


@dataclass(frozen=True, slots=True)
class Span:
    """Rows [start, stop) of the stream are this adapter's, and are multiplied `height` at a time; stop None: all there are."""

    adapter: Adapter
    start: int = 0
    stop: int | None = None
    height: int = 0


@dataclass(slots=True)
class Applied:
    """called: the layers whose products were made."""

    called: set[str] = field(default_factory=lambda: set())


@contextmanager
def applied(
    modules: Mapping[str, nn.Module],
    embeddings: nn.Module,
    spans: Sequence[Span],
    products: Products,
    compiled: Sequence[nn.Module] = (),
    head: nn.Module | None = None,
) -> Generator[Applied]:
    """Inside, `modules` (by name) and the input embedding compute with the adapters of these spans. compiled: layers whose
    compiled forward does not know what is added, and is left aside. head: the base's, for a forward up to the logits of one
    adapter."""
    done = Applied()
    names = {name for span in spans for name in span.adapter.pairs}
    with ExitStack() as stack:
        for layer in compiled:
            own = vars(layer).pop("forward")
            stack.callback(vars(layer).__setitem__, "forward", own)
        for name in names:
            held = [(span, span.adapter.pairs[name]) for span in spans if name in span.adapter.pairs]
            hook = _Linear(name, held, products, done.called)
            stack.callback(modules[name].register_forward_hook(hook).remove)
        if any(span.adapter.embedding is not None or span.adapter.table is not None for span in spans):
            stack.callback(embeddings.register_forward_hook(_Embedding(spans, products)).remove)
        if head is not None and (own := spans[0].adapter.head) is not None:
            stack.callback(
                head.register_forward_hook(lambda _, args, out: linear(args[0], own.weight, own.spec.bias)).remove
            )
        yield done


class _Linear:
    """Behind one layer."""

    def __init__(self, name: str, held: Sequence[tuple[Span, Pair]], products: Products, called: set[str]) -> None:
        self._name, self._held, self._products, self._called = name, held, products, called

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        self._called.add(self._name)
        x = args[0].reshape(-1, args[0].shape[-1]).to(output.device)
        out = output.contiguous().view(-1, output.shape[-1])
        for span, pair in self._held:
            _add(span, out, pair, self._products, lambda rows, pair=pair: self._products.down(rows, pair), x)
        return out.view(output.shape)


class _Embedding:
    """Behind the input embedding."""

    def __init__(self, spans: Sequence[Span], products: Products) -> None:
        self._spans, self._products = spans, products

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        ids = args[0].reshape(-1)
        out = output.contiguous().view(-1, output.shape[-1])
        for span in self._spans:
            if span.adapter.table is not None:
                out[span.start : span.stop] = span.adapter.table(ids[span.start : span.stop])
        for span in self._spans:
            if (pair := span.adapter.embedding) is not None:
                _add(span, out, pair, self._products, lambda rows, pair=pair: embedding(rows, pair.down), ids)
        return out.view(output.shape)


def _add(span: Span, out: Tensor, pair: Pair, products: Products, down: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Put the pair's product on the span's rows of out (T, N). x: what goes in, T rows."""
    stop = len(out) if span.stop is None else span.stop
    rows = stop - span.start
    end = span.start + max(rows, span.height)
    if end <= len(out):
        products.up(out[span.start : end], down(x[span.start : end]), pair, rows)
        return
    mine = padded(out[span.start : stop], end - span.start)
    products.up(mine, down(padded(x[span.start : stop], end - span.start)), pair, rows)
    out[span.start : stop] = mine[:rows]
