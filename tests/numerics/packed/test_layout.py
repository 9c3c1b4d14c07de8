"""The layout: whatever is shared, every row has exactly its own sequence before it."""

import itertools
import random

import numpy as np
import pytest
from grpo_numerics.packed import PackedLayout, worth
from hypothesis import given, settings
from hypothesis import strategies as st


def ids(tokens):
    return np.array(tokens, np.int32)


def build(groups, share=True):
    return PackedLayout.build(
        [ids(p) for p, _ in groups], [[ids(c) for c in cs] for _, cs in groups], share_prefixes=share
    )


def tree_tokens(groups):
    """Rows that predict something, or are before one that does: distinct beginnings."""
    return len({tuple((*p, *c)[:n]) for p, cs in groups for c in cs if c for n in range(1, len(p) + len(c))})


def assert_right(layout, groups):
    """Every predicting row sees its own prompt and completion so far, and nothing else."""
    segment_of = np.repeat(np.arange(len(layout.segments)), [s.length for s in layout.segments])
    assert [s.start for s in layout.segments] == [0, *(s.end for s in layout.segments[:-1])][: len(layout.segments)]
    assert len(segment_of) == layout.tokens == len(layout.positions)
    for i, segment in enumerate(layout.segments):
        assert segment.parent < i
        below = [s for s in layout.segments if i in path(layout, s)]
        assert segment.reach == max([s.end for s in below], default=segment.end)
        assert sum(s.length for s in below) == segment.reach - segment.end
    n = 0
    for prompt, completions in groups:
        for completion in completions:
            for t, token in enumerate(completion):
                row = layout.predict_rows[n]
                own = layout.segments[segment_of[row]]
                before = [k for i in path(layout, own) for k in range(layout.segments[i].start, layout.segments[i].end)]
                rows = [*before, *range(own.start, row + 1)]
                assert layout.token_ids[rows].tolist() == [*prompt, *completion[:t]]
                assert layout.positions[rows].tolist() == list(range(len(prompt) + t))
                assert layout.targets[n] == token
                n += 1
    assert n == len(layout.targets) == len(layout.predict_rows)


def path(layout, segment):
    above = []
    while segment.parent >= 0:
        above.insert(0, segment.parent)
        segment = layout.segments[segment.parent]
    return above


TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=12)
GROUPS = st.lists(
    st.tuples(TOKENS, st.lists(st.lists(st.integers(0, 2), max_size=8), min_size=1, max_size=5)), min_size=1, max_size=6
)


@settings(max_examples=300, deadline=None)
@given(GROUPS, st.booleans(), st.sampled_from([0.0, 1.0, 3.0, 8.0]))
def test_every_row_has_its_own_sequence_before_it(groups, share, calls):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worth, "CALLS", calls)
        patch.setattr(worth, "MERGE", calls and 0.03)
        layout = build(groups, share)
        assert_right(layout, groups)
        if share and calls == 0:  # cuts cost nothing: everything that can be shared is
            assert layout.tokens == tree_tokens(groups)


@pytest.mark.parametrize("share", [True, False])
def test_turns_of_agents_are_rows_of_one_tree(share):
    groups = turns(samples=8, turns=4, prompt=100, completion=40, tool=20)
    layout = build(groups, share)
    assert_right(layout, groups)
    if share:
        assert layout.tokens == tree_tokens(groups) == 100 + 8 * (3 * 60 + 39)
        assert len(layout.segments) == 9  # the prompt, and what each sample makes of it


def turns(samples, turns, prompt, completion, tool, seed=0):
    """Groups of one completion: each turn's prompt is the last one's, its completion and what a tool said."""
    rng = random.Random(seed)
    draw = lambda n: [rng.randrange(50_000) for _ in range(n)]  # noqa: E731
    stem = draw(prompt)
    groups = []
    for _ in range(samples):
        context = stem
        for _ in range(turns):
            answer = draw(completion)
            groups.append((context, [answer]))
            context = [*context, *answer, *draw(tool)]
    return rng.sample(groups, len(groups))


def test_a_turn_that_only_one_sample_goes_on_from():
    """Every turn asks eight completions of one prompt, and the first is what the next turn begins with."""
    rng = random.Random(1)
    groups, context = [], [rng.randrange(999) for _ in range(80)]
    for _ in range(4):
        answers = [[rng.randrange(999) for _ in range(40)] for _ in range(8)]
        groups.append((context, answers))
        context = [*context, *answers[0], *(rng.randrange(999) for _ in range(20))]
    layout = build(groups)
    assert_right(layout, groups)
    assert layout.tokens <= 1.02 * tree_tokens(groups)


def test_what_is_shared_is_in_the_stream_once():
    prompt, longer, same = list(range(100)), list(range(150)), [7, 8, 9]
    layout = build([(prompt, [same, same]), (longer, [same])])
    # 150 prompt tokens once; one completion under each prompt, its last token left out
    assert layout.tokens == 150 + 2 * 2
    assert len(layout.targets) == 9


def test_completions_that_begin_alike_share_what_is_worth_a_cut():
    rng = random.Random(2)
    stem, ends = [1] * 512, [[rng.randrange(9, 99_999) for _ in range(100)] for _ in range(16)]
    few = build([(stem, [[2, 3, *e] for e in ends[:8]] + [[4, 5, *e] for e in ends[8:]])])
    assert len(few.segments) == 17  # a cut would save 14 rows
    assert few.tokens == 512 + 16 * 101
    many = build([(stem, [[2] * 60 + e for e in ends[:8]] + [[4] * 60 + e for e in ends[8:]])])
    assert len(many.segments) == 19
    assert many.tokens == 512 + 2 * 60 + 16 * 99
    everyone = build([(stem, [[2, 3, *e] for e in ends])])
    assert everyone.tokens == 514 + 16 * 99  # where the prompt ends is no reason to cut
    assert len(everyone.segments) == 17


def test_a_lone_sequence_is_one_segment_and_a_prefix_of_another_costs_nothing():
    layout = build([([1, 2, 3], [[4, 5, 6]]), ([1, 2], [[3], [3, 4]]), ([1, 2, 3, 4, 5, 6, 7], [[8]])])
    assert [(s.start, s.end) for s in layout.segments] == [(0, 7)]


def test_unshared_prompts_are_cut_from_their_completions_whatever_else_there_is():
    """Bits depend on the cut, so it may depend on nothing but the sequence."""
    rng = random.Random(3)
    turn = turns(3, 3, 20, 9, 5)
    groups = [*turn, (turn[0][0], [[1, 2, 3], [1, 2, 3], [1, 2, 4], [7]])]
    for _ in range(20):
        some = rng.sample(groups, rng.randrange(1, len(groups)))
        layout = build(some, share=False)
        assert_right(layout, some)
        lengths = {len(p) for p, _ in some}
        for segment in layout.segments:
            assert (segment.position == 0) == (segment.parent < 0)
            assert segment.position == 0 or segment.position in lengths
            assert segment.parent < 0 or layout.segments[segment.parent].length == segment.position


def test_sequences_that_part_at_every_token_are_laid_out_in_reasonable_time():
    """A thousand forks on one path: no recursion, and no work that grows with the square of it."""
    longest = list(range(1500))
    groups = [([*longest[:n], 9999], [[1, 2]]) for n in range(1, 1500)]
    layout = build(groups)
    assert layout.tokens < sum(len(p) + 1 for p, _ in groups)
    assert_some_right(layout, groups)


def assert_some_right(layout, groups):
    segment_of = np.repeat(np.arange(len(layout.segments)), [s.length for s in layout.segments])
    for n in range(0, len(groups), 97):
        row = layout.predict_rows[2 * n]
        above = path(layout, layout.segments[segment_of[row]])
        parts = [layout.token_ids[layout.segments[i].start : layout.segments[i].end] for i in above]
        own = layout.token_ids[layout.segments[segment_of[row]].start : row + 1]
        assert np.concatenate([*parts, own]).tolist() == groups[n][0]


def test_nothing_asked_is_nothing_computed():
    for share in (True, False):
        layout = build([([1, 2], [[], []]), ([3], [[4]])], share)
        assert layout.token_ids.tolist() == [3]
    assert build([([1], [[]])]).tokens == 0
    assert list(itertools.chain(build([([1], [[]])]).segments)) == []


@pytest.mark.parametrize("share", [True, False])
def test_owners_share_nothing_and_have_rows_side_by_side(share):
    groups = [
        ([1, 2, 3], [[4, 5, 6], [4, 5, 7]]),
        ([1, 2, 3], [[4, 5, 6]]),
        ([1, 2, 3, 4], [[9, 9]]),
        ([1, 2, 3], [[4, 5, 6]]),
    ]
    owners = [2, 0, 2, 0]
    prompts, completions = [ids(p) for p, _ in groups], [[ids(c) for c in cs] for _, cs in groups]
    layout = PackedLayout.build(prompts, completions, share_prefixes=share, owners=owners)
    assert_right(layout, groups)
    alone = {
        owner: build([group for group, own in zip(groups, owners, strict=True) if own == owner], share)
        for owner in (0, 2)
    }
    ends = list(itertools.accumulate(part.tokens for part in alone.values()))
    assert layout.spans == {0: (0, ends[0]), 2: (ends[0], ends[1])}
    assert layout.token_ids.tolist() == [token for part in alone.values() for token in part.token_ids.tolist()]
    assert build(groups, share).spans == {0: (0, build(groups, share).tokens)}
