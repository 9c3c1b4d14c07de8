"""The cache: keys that tell apart all that a result depends on, bytes that stay within bounds, oldest out first."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from grpo_client.protocol import CompletionScores, Group, ScoreRequest, Status
from grpo_server.scheduler.cache import ResultCache, content_keys, entry_bytes, result_keys
from server_fakes import ids


def scores(tokens: int) -> CompletionScores:
    figures = {"rank": np.zeros(tokens, dtype=np.int32)}
    return CompletionScores(Status.OK, np.arange(tokens, dtype=np.float32), figures)


def keys_of(request: ScoreRequest, fingerprint: str) -> list[bytes]:
    return result_keys(content_keys(request), fingerprint)


def test_everything_that_changes_the_answer_changes_the_key() -> None:
    group = Group(ids(1, 2), (ids(3, 4),))
    base = ScoreRequest((group,))
    wanted = (ids(5, 6).reshape(2, 1),)
    variants = [
        base,
        replace(base, normalizer="stablemax"),
        replace(base, extras=frozenset({"rank"})),
        replace(base, extras=frozenset({"rank", "entropy"})),
        replace(base, top_k=1),
        replace(base, groups=(replace(group, temperature=0.5),)),
        replace(base, groups=(replace(group, prompt=ids(1)),)),
        replace(base, groups=(Group(ids(1), (ids(2, 3, 4),)),)),  # the same stream of ids, cut elsewhere
        replace(base, groups=(replace(group, completions=(ids(3, 5),)),)),
        replace(base, groups=(replace(group, token_ids=wanted),)),
        replace(base, groups=(replace(group, token_ids=(ids(5, 7).reshape(2, 1),)),)),
    ]
    keys = [keys_of(v, "print")[0] for v in variants] + [keys_of(base, "other print")[0]]
    assert len(set(keys)) == len(keys)


def test_what_does_not_change_the_answer_does_not_change_the_key() -> None:
    one = ScoreRequest((Group(ids(1), (ids(2),)), Group(ids(3), (ids(4), ids(5)))))
    other = ScoreRequest((Group(ids(3), (ids(5),)),), fingerprint="print")
    assert keys_of(one, "print")[2] == keys_of(other, "print")[0]
    strided = ScoreRequest((Group(np.array([3, 9], dtype=np.int32)[::2], (ids(5),)),))
    assert keys_of(strided, "print") == keys_of(other, "print")


def test_the_least_recently_used_goes_first() -> None:
    size = entry_bytes(scores(8))
    cache = ResultCache(3 * size)
    for key in (b"a", b"b", b"c"):
        cache.put(key, scores(8))
    assert cache.get(b"a") is not None  # now b is the oldest
    cache.put(b"d", scores(8))
    assert [key for key in (b"a", b"b", b"c", b"d") if cache.get(key)] == [b"a", b"c", b"d"]
    assert cache.nbytes == 3 * size


def test_bytes_never_pass_the_bound_and_agree_with_the_entries() -> None:
    cache = ResultCache(10_000)
    rng = np.random.default_rng(0)
    kept: dict[bytes, int] = {}
    for i in range(500):
        r, key = scores(int(rng.integers(0, 400))), bytes([i % 50])
        cache.put(key, r)
        kept[key] = entry_bytes(r)
        assert cache.nbytes <= 10_000
    assert cache.nbytes == sum(size for key, size in kept.items() if cache.get(key) is not None)


def test_one_that_is_larger_than_the_cache_is_not_kept_and_drives_nothing_out() -> None:
    cache = ResultCache(2000)
    cache.put(b"small", scores(1))
    cache.put(b"large", scores(10_000))
    assert cache.get(b"large") is None
    assert cache.get(b"small") is not None


def test_an_entry_does_not_keep_the_batch_alive() -> None:
    batch = np.zeros(1000, dtype=np.float32)
    cache = ResultCache(10_000)
    cache.put(b"a", CompletionScores(Status.OK, batch[:2], {}))
    batch[:] = 7
    entry = cache.get(b"a")
    assert entry is not None
    assert entry.logprobs.tolist() == [0, 0]
    assert entry.logprobs.base is None


def test_zero_bytes_turn_it_off() -> None:
    cache = ResultCache(0)
    cache.put(b"a", scores(0))
    assert not cache.enabled
    assert cache.get(b"a") is None
