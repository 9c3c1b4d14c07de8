"""Packed attention against attention written out with a T x T mask in float64, forward and gradient."""

import itertools
import random

import numpy as np
import pytest
import torch
from grpo_numerics.packed import PackedLayout, Schedule, packed_attention

PROMPT_KINDS = {
    "one group": lambda rng: [[rng.randrange(99) for _ in range(21)]],
    "nested": lambda rng: (lambda p: [p[:18], p[:40], p[:57], [*p, 1, 2]])([rng.randrange(99) for _ in range(80)]),
    "shared": lambda rng: (lambda p: [p, p, [*p[:30], 1], [*p[:30], 2, 2]])([rng.randrange(99) for _ in range(30)]),
    "apart": lambda rng: [[rng.randrange(99) for _ in range(n)] for n in (1, 7, 33)],
}


def layout_of(kind, seed, share=True):
    rng = random.Random(seed)
    prompts = [np.array(p, np.int32) for p in PROMPT_KINDS[kind](rng)]
    completions = [
        [np.array([rng.randrange(99) for _ in range(rng.choice([0, 1, 2, 5, 5, 9, 20]))], np.int32) for _ in range(4)]
        for _ in prompts
    ]
    return PackedLayout.build(prompts, completions, share_prefixes=share)


def seen_by(layout, tokens, window):
    """(T, T) bool: the definition, straight from the tree."""
    seen = np.zeros((tokens, tokens), bool)
    for segment in (*layout.prompts, *layout.completions):
        rows = np.arange(segment.start, segment.end)
        for row in rows:
            seen[row, segment.start : row + 1] = True
            for above in layout.prompts:
                if above.end <= segment.start and segment.end <= above.reach:
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


@pytest.mark.parametrize("kind", PROMPT_KINDS)
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


def test_layout_lists_every_context_exactly():
    for seed, kind, share in itertools.product(range(20), PROMPT_KINDS, (True, False)):
        rng = random.Random(seed)
        prompts = [np.array(p, np.int32) for p in PROMPT_KINDS[kind](rng)]
        completions = [
            [np.array([rng.randrange(3) for _ in range(rng.choice([0, 1, 2, 3, 9]))], np.int32) for _ in range(4)]
            for _ in prompts
        ]
        layout = PackedLayout.build(prompts, completions, share_prefixes=share)
        segments = (*layout.prompts, *layout.completions)
        n = 0
        for prompt, group in zip(prompts, completions, strict=True):
            for completion in group:
                for t, token in enumerate(completion):
                    row = layout.predict_rows[n]
                    own = next(s for s in segments if s.start <= row < s.end)
                    above = [s for s in layout.prompts if s.end <= own.start and own.end <= s.reach]
                    ids = [i for s in above for i in layout.token_ids[s.start : s.end]]
                    ids += list(layout.token_ids[own.start : row + 1])
                    assert ids == [*prompt, *completion[:t]]
                    assert layout.positions[row] == len(ids) - 1
                    assert layout.targets[n] == token
                    n += 1
        assert n == len(layout.targets)


def test_shared_tokens_are_in_the_stream_once():
    prompt = np.arange(100, dtype=np.int32)
    longer = np.arange(150, dtype=np.int32)
    same = np.array([7, 8, 9], np.int32)
    layout = PackedLayout.build([prompt, longer], [[same, same], [same]])
    # 150 prompt tokens once; one completion under each prompt, its last token left out
    assert layout.tokens == 150 + 2 * 2
    assert len(layout.targets) == 9
