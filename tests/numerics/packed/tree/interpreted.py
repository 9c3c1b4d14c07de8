"""What the tree kernels compute, under Triton's interpreter, against float64. Run by `test_interpreted`.

In a process of its own, because Triton decides at import whether it compiles or interprets. fp32 and fp16 only: the
interpreter multiplies the bit patterns of bf16. Blocks are small, so that small trees have many of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from grpo_numerics.packed import PackedLayout, Schedule, packed_attention
from grpo_numerics.packed.tree import backward, blocks, forward
from grpo_numerics.packed.tree.op import tree_attention
from grpo_numerics.packed.tree.schedule import KeyTables, QueryTables
from grpo_numerics.packed.tree.segments import Tree
from torch import Tensor

SMALL = blocks.Blocks(32, 16, warps=4, stages=1)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "forward_blocks", lambda *_: SMALL)
    monkeypatch.setattr(blocks, "backward_blocks", lambda *_: SMALL)


def tree_of(*segments: tuple[int, int]) -> Tree:
    """Segments as (parent, length), in the order of the stream."""
    lengths = np.array([length for _, length in segments])
    parents = np.array([parent for parent, _ in segments])
    ends = np.cumsum(lengths)
    positions = np.zeros(len(segments), np.int64)
    for i, parent in enumerate(parents):
        positions[i] = 0 if parent < 0 else positions[parent] + lengths[parent]
    return Tree(ends - lengths, ends, parents, positions)


TREES = {
    "alone": [(-1, 21)],
    "one token": [(-1, 1)],
    "a group": [(-1, 19), (0, 5), (0, 16), (0, 1)],
    "on the block": [(-1, 16), (0, 16), (0, 17)],
    "turns": [(-1, 18), (0, 20), (1, 9), (2, 17)],
    "short turns": [(-1, 3), (0, 2), (1, 1), (2, 4), (3, 9), (4, 2)],
    "depth 3": [(-1, 20), (0, 7), (1, 6), (2, 9), (1, 3), (0, 12)],
    "a forest": [(-1, 9), (0, 9), (-1, 17), (2, 3), (-1, 2)],
    "children later": [(-1, 18), (-1, 5), (0, 7), (1, 20)],
}


class Case(NamedTuple):
    tree: str
    heads: tuple[int, int] = (2, 1)
    dims: tuple[int, int] = (16, 16)
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False


TRIED = [
    Case("alone"),
    Case("one token", (7, 1)),
    Case("a group", (4, 2)),
    Case("a group", (7, 1), (20, 20)),
    Case("a group", (2, 2), (32, 16), window=7),
    Case("a group", (3, 1), sinks=True),
    Case("on the block", (2, 1), (24, 24)),
    Case("on the block", (2, 1), window=16),
    Case("turns", (2, 1), (48, 32)),
    Case("turns", (4, 2), window=20, softcap=3.0),
    Case("turns", (7, 1), (32, 32), sinks=True),
    Case("short turns", (3, 1)),
    Case("short turns", (2, 1), window=4, sinks=True),
    Case("short turns", (1, 1), (192, 128)),
    Case("depth 3", (7, 1), (64, 64)),
    Case("depth 3", (2, 1), (96, 96)),
    Case("depth 3", (2, 1), softcap=5.0, window=11, sinks=True),
    Case("depth 3", (2, 1), (80, 80), softcap=2.0),
    Case("a forest", (2, 1), (256, 256)),
    Case("a forest", (6, 2), window=1),
    Case("children later", (4, 1)),
    Case("children later", (2, 1), (32, 32), window=19),
]


def tables(tree: Tree, repeats: int, windowed: bool) -> list[Tensor]:
    queries = QueryTables.of(tree, repeats, SMALL.m, SMALL.n)
    keys = KeyTables.of(tree, SMALL.n, windowed=windowed)
    of_queries = (queries.tiles, queries.items, queries.joints)
    return [torch.from_numpy(table) for table in (*of_queries, *of_queries, keys.tiles, keys.runs)]


def seen_by(tree: Tree, window: int | None) -> tuple[Tensor, Tensor]:
    """(T, T) bool and (T,) positions: the definition, row by row."""
    tokens = int(tree.end.max())
    seen, position = np.zeros((tokens, tokens), bool), np.zeros(tokens, np.int64)
    for i, (start, end) in enumerate(zip(tree.start, tree.end, strict=True)):
        position[start:end] = tree.position[i] + np.arange(end - start)
        for row in range(start, end):
            seen[row, start : row + 1] = True
        above = tree.parent[i]
        while above >= 0:
            seen[start:end, tree.start[above] : tree.end[above]] = True
            above = tree.parent[above]
    if window is not None:
        seen &= position[:, None] - position[None, :] < window
    return torch.from_numpy(seen), torch.from_numpy(position)


def dense(leaves: list[Tensor], seen: Tensor, scale: float, softcap: float | None) -> tuple[Tensor, Tensor]:
    q, k, v, *sinks = leaves
    repeats = q.shape[0] // k.shape[0]
    k, v = k.repeat_interleave(repeats, 0), v.repeat_interleave(repeats, 0)
    scores = q @ k.transpose(1, 2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~seen, -torch.inf)
    for of_heads in sinks:
        scores = torch.cat([scores, of_heads[:, None, None].expand(-1, scores.shape[1], 1)], -1)
    weights = torch.softmax(scores, -1)[..., : k.shape[1]]
    return (weights @ v).transpose(0, 1), torch.logsumexp(scores, -1).transpose(0, 1)


def random_leaves(case: Case, tokens: int, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v as models leave them, heads side by side in a row; and the sinks."""
    generator = torch.Generator().manual_seed(tokens)
    (heads, groups), (dim, dim_v) = case.heads, case.dims
    shapes = ((heads, dim), (groups, dim), (groups, dim_v))
    leaves = [torch.randn(tokens, *shape, generator=generator).to(dtype).transpose(0, 1) for shape in shapes]
    return [*leaves, torch.randn(heads, generator=generator)] if case.sinks else leaves


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("case", TRIED, ids=str)
def test_output_and_gradients_match_float64(case: Case, dtype: torch.dtype) -> None:
    tree = tree_of(*TREES[case.tree])
    seen, _ = seen_by(tree, case.window)
    leaves = [leaf.requires_grad_() for leaf in random_leaves(case, len(seen), dtype)]
    exact_leaves = [leaf.detach().double().requires_grad_() for leaf in leaves]
    scale = 2 * case.dims[0] ** -0.5
    upstream = torch.randn(len(seen), case.heads[0], case.dims[1], generator=torch.Generator().manual_seed(1)).to(dtype)

    q, k, v = leaves[:3]
    sinks = leaves[3] if case.sinks else None
    of_tree = tables(tree, case.heads[0] // case.heads[1], case.window is not None)
    out, lse = tree_attention(q, k, v, sinks, of_tree, scale, case.softcap, case.window)
    found = (out.detach(), *torch.autograd.grad(out, leaves, upstream))
    exact_out, exact_lse = dense(exact_leaves, seen, scale, case.softcap)
    exact = (exact_out.detach(), *torch.autograd.grad(exact_out, exact_leaves, upstream.double()))

    # fp32: a dozen roundings. fp16: weights, output and d_scores are rounded once each on the way
    bound = 1e-6 if dtype == torch.float32 else 1e-3
    for mine, truth in zip(found, exact, strict=True):
        # a row that sees one key passes nothing on: then what comes in is the measure
        size = float(truth.norm()) or float(upstream.double().norm())
        assert (mine.double() - truth).norm() <= bound * size
    torch.testing.assert_close(lse.double(), exact_lse.detach(), rtol=0, atol=1e-5)


class Stream(NamedTuple):
    """What a model would make of tokens: a row's q, k and v follow from its token and its position."""

    heads: int
    groups: int
    window: int | None
    table: Tensor

    @classmethod
    def random(cls, heads: int, groups: int, window: int | None) -> Stream:
        generator = torch.Generator().manual_seed(3)
        return cls(heads, groups, window, torch.randn(100, (heads + 2 * groups) * 16, generator=generator))

    def rows(self, prompts: list[list[int]], completions: list[list[list[int]]], *, share: bool) -> Tensor:
        """(N, H, 16): attention's output where a completion token is predicted."""
        layout = PackedLayout.build(
            [np.array(p, np.int32) for p in prompts],
            [[np.array(c, np.int32) for c in group] for group in completions],
            share_prefixes=share,
        )
        tokens, positions = torch.from_numpy(layout.token_ids).long(), torch.from_numpy(layout.positions)
        x = self.table[tokens] * torch.cos(positions.double() * 0.1)[:, None].float()
        sizes = [16 * n for n in (self.heads, self.groups, self.groups)]
        q, k, v = (t.unflatten(1, (-1, 16)).transpose(0, 1) for t in x.split(sizes, 1))
        schedule = Schedule(layout, torch.device("cpu"))
        out = packed_attention(q, k, v, schedule, scale=0.4, window=self.window)
        return out[torch.from_numpy(layout.predict_rows)]


@pytest.mark.parametrize("window", [None, 12])
def test_bits_are_those_of_the_sequence_alone_however_it_is_shared(window: int | None) -> None:
    rng = np.random.default_rng(0)
    stem, other = rng.integers(0, 100, 37).tolist(), rng.integers(0, 100, 21).tolist()
    prompts = [
        stem,
        [*stem[:20], 1, 2, 3],
        other,
        [*stem, 7, 8],
    ]  # the last: a turn that goes on from the first's completion
    completions = [[[7, 8, 9, 9], other], [[5] * 18], [[4]], [[9, 9, 1], [9, 9, 2, 2, 2]]]
    stream = Stream.random(3, 1, window)
    alone = torch.cat(
        [stream.rows([p], [[c]], share=False) for p, g in zip(prompts, completions, strict=True) for c in g]
    )
    for share in (False, True):
        assert torch.equal(stream.rows(prompts, completions, share=share), alone)
    backwards = stream.rows(prompts[::-1], [g[::-1] for g in completions[::-1]], share=True)
    assert len(backwards) == len(alone)
    assert sorted(map(tuple, backwards.flatten(1).tolist())) == sorted(map(tuple, alone.flatten(1).tolist()))


def test_a_layer_is_one_launch_and_its_gradient_two(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[str] = []
    for module, kernel in ((forward, "forward_kernel"), (backward, "backward_kernel"), (backward, "deltas_kernel")):
        monkeypatch.setattr(module, kernel, _Counted(getattr(module, kernel), kernel, launched))
    layout = PackedLayout.build([np.arange(9, dtype=np.int32)] * 2, [[np.arange(5, dtype=np.int32)]] * 2)
    q, k, v = (torch.randn(heads, layout.tokens, 16, requires_grad=True) for heads in (2, 1, 1))
    out = packed_attention(q, k, v, Schedule(layout, torch.device("cpu")), scale=1.0)
    assert launched == ["forward_kernel"]
    out.sum().backward()
    assert launched == ["forward_kernel", "deltas_kernel", "backward_kernel"]


class _Counted:
    """A kernel that writes down its launches."""

    def __init__(self, kernel: Any, name: str, launched: list[str]) -> None:
        self._kernel, self._name, self._launched = kernel, name, launched

    def __getitem__(self, grid: Any) -> Any:
        self._launched.append(self._name)
        return self._kernel[grid]


def test_the_operator_is_what_torch_asks_of_one() -> None:
    tree = tree_of(*TREES["a group"])
    q, k, v, sinks = random_leaves(Case("a group", (2, 1), sinks=True), 41, torch.float32)
    arguments = (q, k, v, sinks, tables(tree, 2, False), 0.3, None, None)
    torch.library.opcheck(tree_attention, arguments, test_utils=("test_schema", "test_faketensor"))
