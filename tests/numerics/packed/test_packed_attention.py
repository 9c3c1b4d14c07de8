"""Packed attention against attention written out with a T x T mask in float64, forward and gradient."""

import random

import numpy as np
import pytest
import torch
from grpo_numerics.packed import PackedLayout, Schedule, packed_attention, worth

PROMPT_KINDS = {
    "one group": lambda rng: [[rng.randrange(99) for _ in range(21)]],
    "nested": lambda rng: (lambda p: [p[:18], p[:40], p[:57], [*p, 1, 2]])([rng.randrange(99) for _ in range(80)]),
    "shared": lambda rng: (lambda p: [p, p, [*p[:30], 1], [*p[:30], 2, 2]])([rng.randrange(99) for _ in range(30)]),
    "apart": lambda rng: [[rng.randrange(99) for _ in range(n)] for n in (1, 7, 33)],
}


def layout_of(kind, seed, share=True):
    rng = random.Random(seed)
    if kind == "turns":  # four samples, each going on from the same answer or from its own; a tree of depth four
        return turns_layout(rng, share)
    prompts = [np.array(p, np.int32) for p in PROMPT_KINDS[kind](rng)]
    completions = [
        [np.array([rng.randrange(99) for _ in range(rng.choice([0, 1, 2, 5, 5, 9, 20]))], np.int32) for _ in range(4)]
        for _ in prompts
    ]
    return PackedLayout.build(prompts, completions, share_prefixes=share)


def turns_layout(rng, share):
    prompts, completions = [], []
    contexts = [[rng.randrange(99) for _ in range(17)]]
    for _ in range(3):
        answers = [[[rng.randrange(99) for _ in range(rng.choice([9, 14]))] for _ in range(3)] for _ in contexts]
        prompts += contexts
        completions += answers
        contexts = [
            [*c, *a, *(rng.randrange(99) for _ in range(5))]
            for c, group in zip(contexts, answers, strict=True)
            for a in group[:2]
        ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worth, "CALLS", 0.0)  # as deep as it gets
        patch.setattr(worth, "MERGE", 0.0)
        return PackedLayout.build(
            [np.array(p, np.int32) for p in prompts],
            [[np.array(c, np.int32) for c in group] for group in completions],
            share_prefixes=share,
        )


def ancestors(layout, segment):
    """From the first on."""
    path = []
    while segment.parent >= 0:
        segment = layout.segments[segment.parent]
        path.insert(0, segment)
    return path


def seen_by(layout, tokens, window):
    """(T, T) bool: the definition, straight from the tree."""
    seen = np.zeros((tokens, tokens), bool)
    for segment in layout.segments:
        for row in range(segment.start, segment.end):
            seen[row, segment.start : row + 1] = True
            for above in ancestors(layout, segment):
                seen[row, above.start : above.end] = True
    if window is not None:
        positions = layout.positions
        n = layout.tokens
        seen[:n, :n] &= positions[:, None] - positions[None, :] < window
    return torch.from_numpy(seen)


def dense(q, k, v, seen, scale, softcap, sinks):
    repeats = q.shape[0] // k.shape[0]
    k, v = k.repeat_interleave(repeats, 0), v.repeat_interleave(repeats, 0)
    scores = q @ k.transpose(1, 2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks[:, None, None].expand(-1, scores.shape[1], 1)], -1)
    weights = torch.softmax(scores, -1)
    return (weights[..., : k.shape[1]] @ v).transpose(0, 1)


@pytest.mark.parametrize("kind", [*PROMPT_KINDS, "turns"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
@pytest.mark.parametrize(
    ("softcap", "window", "sink"),
    [(None, None, False), (5.0, None, False), (None, 6, False), (None, 23, True), (2.0, 11, True)],
)
@pytest.mark.parametrize("exact", [False, True])
def test_forward_and_gradient_equal_dense_attention(kind, heads, kv_heads, softcap, window, sink, exact):
    layout = layout_of(kind, 1, share=not exact)
    schedule = Schedule(layout, torch.device("cpu"), exact=exact)
    tokens = schedule.padded_tokens
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(h, tokens, 16, generator=generator) for h in (heads, kv_heads, kv_heads))
    sinks = torch.randn(heads, generator=generator) if sink else None
    leaves = [t for t in (q, k, v, sinks) if t is not None]
    weight = torch.randn(tokens, heads, 16, generator=generator)
    weight[layout.tokens :] = 0  # nobody reads the padding

    for t in leaves:
        t.requires_grad_()
    out = packed_attention(q, k, v, schedule, scale=0.3, softcap=softcap, window=window, sinks=sinks)
    grads = torch.autograd.grad((out * weight).sum(), leaves)

    exact_leaves = [t.detach().double().requires_grad_() for t in leaves]
    qd, kd, vd = exact_leaves[:3]
    seen = seen_by(layout, tokens, window)
    seen[layout.tokens :, layout.tokens :] = torch.ones(tokens - layout.tokens, tokens - layout.tokens).tril().bool()
    expected = dense(qd, kd, vd, seen, 0.3, softcap, exact_leaves[3] if sink else None)
    expected_grads = torch.autograd.grad((expected * weight.double()).sum(), exact_leaves)

    n = layout.tokens
    # an fp32 attention over at most ~100 keys of size-1 values: a few dozen roundings of numbers of size 1
    torch.testing.assert_close(out[:n].double(), expected[:n], rtol=0, atol=100 * 2**-24)
    for grad, want in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad.double(), want, rtol=0, atol=400 * 2**-24 * max(1.0, want.abs().max().item()))


def test_no_gradient_path_gives_the_same_bits():
    layout = layout_of("shared", 3)
    schedule = Schedule(layout, torch.device("cpu"))
    q, k, v = (torch.randn(h, layout.tokens, 8, requires_grad=True) for h in (4, 2, 2))
    with torch.no_grad():
        inference = packed_attention(q, k, v, schedule, scale=1.0)
    assert torch.equal(inference, packed_attention(q, k, v, schedule, scale=1.0))
