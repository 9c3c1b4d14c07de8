"""Attention over a stack of keys against attention written out with a T x T mask in float64."""

import numpy as np
import pytest
import torch
from grpo_numerics.packed import PackedLayout, Schedule, packed_attention
from grpo_numerics.packed.stacked import BLOCK_ROWS, LONGEST, blocks_of, stacked_attention

CPU = torch.device("cpu")
RNG = np.random.default_rng(3)


def ids(length):
    return RNG.integers(0, 99, length, dtype=np.int32)


def nested():
    """Prompts that begin alike, and completions of all lengths below them."""
    base = ids(80)
    prompts = [base[:18], base[:40], base[:57], np.append(base, ids(2))]
    return PackedLayout.build(prompts, [[ids(n) for n in (0, 1, 2, 5, 5, 20)] for _ in prompts])


def long():
    """Segments longer than a block, a group whose completions fill blocks together, one that is alone in its own."""
    return PackedLayout.build(
        [ids(2 * BLOCK_ROWS + 37), ids(50), ids(BLOCK_ROWS)],
        [[ids(n) for n in (300, 5, 70, 70, BLOCK_ROWS + 1, 1)], [ids(40) for _ in range(9)], [ids(3)]],
    )


def turns():
    """A second turn that continues a completion of the first, twice."""
    first, reply, tool = ids(60), ids(50), ids(20)
    second = np.concatenate([first, reply, tool])
    return PackedLayout.build([first, second], [[reply, ids(30), ids(30)], [ids(40), ids(45)]])


LAYOUTS = {"nested": nested, "long": long, "turns": turns}


def seen(layout):
    """(T, T) bool: the definition, straight from the tree."""
    sees = torch.zeros(layout.tokens, layout.tokens, dtype=torch.bool)
    for segment in layout.segments:
        rows = slice(segment.start, segment.end)
        sees[rows, rows] = torch.ones(segment.length, segment.length).tril().bool()
        above = segment.parent
        while above >= 0:
            sees[rows, layout.segments[above].start : layout.segments[above].end] = True
            above = layout.segments[above].parent
    return sees


def dense(q, k, v, sees, scale):
    repeats = q.shape[0] // k.shape[0]
    scores = q @ k.repeat_interleave(repeats, 0).mT * scale
    weights = torch.softmax(scores.masked_fill(~sees, -torch.inf), -1)
    return (weights @ v.repeat_interleave(repeats, 0)).transpose(0, 1)


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
@pytest.mark.parametrize("dim_v", [16, 24])
def test_equals_dense_attention(kind, heads, kv_heads, dim_v):
    layout = LAYOUTS[kind]()
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(h, layout.tokens, d, generator=generator)
        for h, d in ((heads, 16), (kv_heads, 16), (kv_heads, dim_v))
    )
    out = stacked_attention(q, k, v, blocks_of(layout), scale=0.3)
    expected = dense(q.double(), k.double(), v.double(), seen(layout), 0.3)
    assert out.shape == (layout.tokens, heads, dim_v)
    # a few dozen roundings of numbers of size 1
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=100 * 2**-24)


def test_halves_are_rounded_no_more_than_in_attention_written_out():
    layout = long()
    q, k, v = (torch.randn(h, layout.tokens, 32, generator=torch.Generator().manual_seed(h)) for h in (6, 2, 2))
    q, k, v = (t.bfloat16() for t in (q, k, v))
    sees = seen(layout)
    truth = dense(q.double(), k.double(), v.double(), sees, 32**-0.5)
    written_out = (dense(q, k, v, sees, 32**-0.5).double() - truth).square().mean().sqrt()
    ours = (stacked_attention(q, k, v, blocks_of(layout), scale=32**-0.5).double() - truth).square().mean().sqrt()
    assert ours <= 1.1 * written_out


def test_the_heads_of_a_block_may_be_taken_in_turns(monkeypatch):
    layout = long()
    q, k, v = (torch.randn(h, layout.tokens, 8, generator=torch.Generator().manual_seed(h)) for h in (8, 4, 4))
    together = stacked_attention(q, k, v, blocks_of(layout), scale=1.0)
    monkeypatch.setattr("grpo_numerics.packed.stacked._SCORES", 1)
    torch.testing.assert_close(stacked_attention(q, k, v, blocks_of(layout), scale=1.0), together, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_blocks_fill_the_stream_in_order_and_none_is_higher_than_a_block(kind):
    layout = LAYOUTS[kind]()
    blocks = blocks_of(layout)
    assert [b.start for b in blocks] == [0, *(b.stop for b in blocks)][:-1]
    assert blocks[-1].stop == layout.tokens
    assert max(b.rows for b in blocks) <= BLOCK_ROWS
    assert all(b.base == layout.positions[b.start] for b in blocks)


def test_a_group_of_short_completions_shares_blocks():
    prompt, completions = np.arange(64, dtype=np.int32), [np.full(9, i, np.int32) for i in range(16)]
    blocks = blocks_of(PackedLayout.build([prompt], [completions]))
    assert [b.rows for b in blocks] == [64, 128]


def test_a_sequence_beyond_the_cache_is_left_to_the_other_kernel():
    layout = PackedLayout.build([np.arange(LONGEST + 1, dtype=np.int32)], [[np.arange(2, dtype=np.int32)]])
    assert blocks_of(layout) is None
    assert Schedule(layout, CPU, stacked=True).blocks is None


@pytest.mark.parametrize("exact", [False, True])
def test_asked_for_it_is_taken_where_it_gives_the_same(exact):
    layout = nested()
    asked, plain = (Schedule(layout, CPU, exact=exact, stacked=stacked) for stacked in (True, False))
    assert (asked.blocks is None) == exact  # exact mode's bits do not depend on blocks
    q, k, v = (torch.randn(h, plain.padded_tokens, 16, generator=torch.Generator().manual_seed(h)) for h in (4, 2, 2))
    sinks = torch.ones(4)
    for how in ({}, {"window": 1000}, {"window": 7}, {"softcap": 3.0}, {"sinks": sinks}):
        with torch.no_grad():
            got, want = (packed_attention(q, k, v, s, scale=0.3, **how)[: layout.tokens] for s in (asked, plain))
        torch.testing.assert_close(got, want, rtol=0, atol=200 * 2**-24)
        # everything but plain attention, and gradients, are the other kernels' business, to the bit
        assert torch.equal(got, want) == (exact or how not in ({}, {"window": 1000}))


def test_gradients_come_by_the_differentiable_way():
    layout = nested()
    q, k, v = (torch.randn(h, layout.tokens, 8, requires_grad=True) for h in (2, 2, 2))
    out = packed_attention(q, k, v, Schedule(layout, CPU, stacked=True), scale=1.0)
    assert torch.equal(out, packed_attention(q, k, v, Schedule(layout, CPU), scale=1.0))
    out.sum().backward()
    assert q.grad is not None
