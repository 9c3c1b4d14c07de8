"""A forward of the base in which rows pass the products of their adapters.

A layer's own product is made once, over all rows; behind it each adapter adds scale * (x @ down^T) @ up^T to its own rows, in
place. The layers are as they were when the block is left: parameters are never touched.

Bits. A product may change the bits of a row with the number of its rows. So an adapter's rows are multiplied at heights that
were tried: behind its last row the next adapter's come along, and their share of x @ down^T is set to zero, which adds zero to
them. Nothing here waits for a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from grpo_client.models.files import UnusableModel
from grpo_numerics.head.tiles import padded
from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from .adapter import Adapter
from .products import Pair
from .settings import MERGED


@dataclass(frozen=True, slots=True)
class Span:
    """Rows [start, stop) of a stream of `of` rows are this adapter's, and are multiplied `height` at a time; stop None: all
    that there are, however many."""

    adapter: Adapter
    start: int = 0
    stop: int | None = None
    height: int = 0
    of: int | None = None


@dataclass(slots=True)
class Applied:
    """called: the layers whose products were made."""

    called: set[str] = field(default_factory=lambda: set())


@contextmanager
def applied(
    modules: Mapping[str, nn.Module],
    embeddings: nn.Module,
    spans: Sequence[Span],
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
            hook = _Linear(name, held, done.called)
            stack.callback(modules[name].register_forward_hook(hook).remove)
        if any(span.adapter.embedding is not None or span.adapter.table is not None for span in spans):
            stack.callback(embeddings.register_forward_hook(_Embedding(spans)).remove)
        if head is not None and (own := spans[0].adapter.head) is not None:
            stack.callback(
                head.register_forward_hook(lambda _, args, out: linear(args[0], own.weight, own.spec.bias)).remove
            )
        yield done


class _Linear:
    """Behind one layer."""

    def __init__(self, name: str, held: Sequence[tuple[Span, Pair]], called: set[str]) -> None:
        self._name, self._held, self._called = name, held, called

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        self._called.add(self._name)
        x = args[0].reshape(-1, args[0].shape[-1]).to(output.device)
        out = output.contiguous().view(-1, output.shape[-1])
        for span, pair in self._held:
            if span.of not in (None, len(out)):
                raise UnusableModel(
                    f"the base computes {self._name} over some of the tokens alone, so that an adapter of it is not held "
                    f"beside it; {MERGED}"
                )
            _add(span, out, pair, span.adapter.products.down, x)
        return out.view(output.shape)


class _Embedding:
    """Behind the input embedding."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self._spans = spans

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        ids = args[0].reshape(-1)
        out = output.contiguous().view(-1, output.shape[-1])
        for span in self._spans:
            if span.adapter.table is not None:
                out[span.start : span.stop] = span.adapter.table(ids[span.start : span.stop])
        for span in self._spans:
            if (pair := span.adapter.embedding) is not None:
                _add(span, out, pair, _looked_up, ids)
        return out.view(output.shape)


def _looked_up(ids: Tensor, pair: Pair) -> Tensor:
    return embedding(ids, pair.down)


def _add(span: Span, out: Tensor, pair: Pair, down: Callable[[Tensor, Pair], Tensor], x: Tensor) -> None:
    """Put the pair's product on the span's rows of out (T, N). x: what goes in, T rows."""
    stop = len(out) if span.stop is None else span.stop
    rows = stop - span.start
    end = span.start + max(rows, span.height)
    up = span.adapter.products.up
    if end <= len(out):
        up(out[span.start : end], down(x[span.start : end], pair), pair, rows)
        return
    mine = padded(out[span.start : stop], end - span.start)
    up(mine, down(padded(x[span.start : stop], end - span.start), pair), pair, rows)
    out[span.start : stop] = mine[:rows]
