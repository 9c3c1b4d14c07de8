"""Where a prompt belongs: the same everywhere, evenly shared, bounded, and few move when a member goes."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from grpo_client.ring import LOAD_FACTOR, POINTS, Ring, prompt_key, read_key, write_key

MEMBERS = [f"http://replica-{n}:8000" for n in range(8)]
KEYS = [prompt_key(np.array([n, 7, n % 5], np.int32)) for n in range(4000)]


def home(ring: Ring, key: int) -> str:
    return next(ring.clockwise(key))


def test_the_order_of_the_members_does_not_matter() -> None:
    one, other = Ring(MEMBERS), Ring([*MEMBERS[::-1], MEMBERS[0]])
    assert [home(one, key) for key in KEYS] == [home(other, key) for key in KEYS]
    assert sorted(one.clockwise(KEYS[0])) == sorted(MEMBERS)


def test_shares_are_even_to_what_virtual_nodes_give() -> None:
    """A share is a mean of POINTS arcs, exponentially distributed: its relative deviation is about 1 / sqrt(POINTS)."""
    ring = Ring(MEMBERS)
    shares = Counter(home(ring, key) for key in KEYS)
    even = len(KEYS) / len(MEMBERS)
    deviation = math.hypot(1 / math.sqrt(POINTS), 1 / math.sqrt(even))
    assert all(abs(shares[name] / even - 1) < 3 * deviation for name in MEMBERS)


def test_a_member_that_is_gone_leaves_its_prompts_to_others_and_moves_none_of_theirs() -> None:
    whole, rest = Ring(MEMBERS), Ring(MEMBERS[1:])
    up = dict.fromkeys(MEMBERS[1:], 0)
    for key in KEYS:
        before = home(whole, key)
        assert before == home(rest, key) if before != MEMBERS[0] else home(rest, key) in MEMBERS[1:]
        assert whole.place(key, up, factor=1e9) == home(rest, key)  # down is as good as gone


def test_nobody_is_given_more_than_the_bound() -> None:
    ring, loads = Ring(MEMBERS), dict.fromkeys(MEMBERS, 0)
    for sent in range(400):
        name = ring.place(KEYS[0], loads)  # one prompt alone, the worst there is
        loads[name] += 1
        assert loads[name] <= math.ceil(LOAD_FACTOR * (sent + 1) / len(MEMBERS))
    assert sum(loads.values()) == 400
    assert max(loads, key=loads.__getitem__) in list(ring.clockwise(KEYS[0]))[:7]


def test_an_idle_ring_gives_a_prompt_to_its_own_member() -> None:
    ring = Ring(MEMBERS)
    assert all(ring.place(key, dict.fromkeys(MEMBERS, 0)) == home(ring, key) for key in KEYS[:200])


@pytest.mark.parametrize("factor", [1.0, 1.25, 2.0])
def test_there_is_always_one_with_room(factor: float) -> None:
    ring = Ring(MEMBERS)
    for loads in ([9] * 8, [0, 9, 9, 9, 9, 9, 9, 9], [10**6] * 7 + [10**6 - 1]):
        assert ring.place(KEYS[3], dict(zip(MEMBERS, loads, strict=True)), factor) in MEMBERS


def test_a_key_is_the_prompts_alone() -> None:
    ids = [5, 6, 7, 2**31 - 1]
    assert prompt_key(np.array(ids)) == prompt_key(np.array(ids, np.int32)) == prompt_key(np.array([0, *ids])[1:])
    assert (
        len({prompt_key(np.array(ids)), prompt_key(np.array(ids[:-1])), prompt_key("5 6 7"), prompt_key("\ud800")}) == 4
    )
    messages = ({"role": "user", "content": "é"}, {"content": "a", "role": "assistant"})
    assert prompt_key(messages) == prompt_key(tuple(dict(reversed(m.items())) for m in messages))
    assert prompt_key(messages) != prompt_key(messages[::-1])


def test_another_process_finds_the_same_keys_and_places() -> None:
    """Whatever Python's own hashes are seeded with."""
    code = (
        "from grpo_client.ring import Ring, prompt_key; key = prompt_key('a prompt');"
        f"print(key, *Ring({MEMBERS!r}).clockwise(key))"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "3"}
    )
    key = prompt_key("a prompt")
    assert told.stdout.split() == [str(key), *Ring(MEMBERS).clockwise(key)]


def test_a_key_travels_as_sixteen_digits() -> None:
    assert all(read_key(write_key(key)) == key for key in [0, 2**64 - 1, *KEYS[:9]])
    assert [read_key(text) for text in (None, "", "12", "x" * 16, "0" * 17)] == [None] * 5
