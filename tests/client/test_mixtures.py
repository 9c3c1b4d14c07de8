"""The best tokens of a mixture are those of the distribution itself, over the whole vocabulary."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from grpo_client import ReferenceInfo, ScoreRequest, ScoreResult, Status, Teachers, Usage
from grpo_client.validation.answers import check_answer
from grpo_client.validation.request import check_request

VOCAB = 40
WEIGHTS = {"a": 0.2, "b": 0.5, "c": 0.3}
PROMPTS = [[1, 2], [3]]
COMPLETIONS = [[[4, 5, 6], []], [[7, 8], [9]]]
TOKENS = 6


INFO = ReferenceInfo(
    model="m", fingerprint="f", version=1, dtype="float32", mode="exact", max_length=64, vocab_size=VOCAB
)


def outside(table: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """(N,) the mass outside these ids."""
    rest = table.astype(np.float64)
    for row, own in zip(rest, ids, strict=True):
        row[own[own >= 0]] = -np.inf
    return np.logaddexp.reduce(rest, axis=1).astype(np.float32)


class Host:
    """A teacher with these (N, V) log-probs. asked: what it was asked. failed: a completion whose figures are NaN."""

    def __init__(self, logprobs: np.ndarray, failed: int | None = None) -> None:
        self.table, self.failed = logprobs, failed
        self.asked: list[ScoreRequest] = []

    def submit_request(self, request: ScoreRequest) -> Future[ScoreResult]:
        check_request(request, vocab_size=self.table.shape[1], max_length=64, max_top_k=1024)
        self.asked.append(request)
        future: Future[ScoreResult] = Future()
        future.set_result(self.scored(request))
        check_answer(future.result(), request)
        return future

    def scored(self, request: ScoreRequest) -> ScoreResult:
        table = self.table[: int(request.completion_lengths.sum())].astype(np.float32)
        extras: dict[str, Any] = {}
        if request.top_k:
            ids = np.argsort(-table, axis=1, kind="stable").astype(np.int32)
            extras["top_ids"] = ids[:, : request.top_k]
            extras["top_logprobs"] = np.take_along_axis(table, extras["top_ids"], axis=1)
            extras["top_tail"] = outside(table, extras["top_ids"])
        if request.asked_ids is not None:
            ids = np.concatenate([t.reshape(-1, request.asked_ids) for g in request.groups for t in g.token_ids or ()])
            picked = np.take_along_axis(table, np.maximum(ids, 0), axis=1)
            extras["token_logprobs"] = np.where(ids < 0, np.float32(-np.inf), picked)
            extras["token_tail"] = outside(table, ids)
        if "tail" not in request.extras:
            extras = {name: values for name, values in extras.items() if "tail" not in name}
        status = np.zeros(len(request.completion_lengths), np.uint8)
        status[[] if self.failed is None else [self.failed]] = Status.NONFINITE
        mask = request.completion_mask
        unscored = np.repeat(status != Status.OK, request.completion_lengths)
        unscored |= False if mask is None else ~mask
        logprobs = table[:, 0].copy()
        for values in (logprobs, *extras.values()):
            values[unscored] = np.nan if values.dtype == np.float32 else -1
        if "top_ids" in extras:
            extras["top_ids"][unscored if mask is None else unscored & mask] = 0
        return ScoreResult(
            reference=INFO.model_copy(update={"vocab_size": table.shape[1]}),
            normalizer="softmax",
            temperature=np.ones(len(request.groups), np.float32),
            group_sizes=request.group_sizes,
            completion_lengths=request.completion_lengths,
            logprobs=logprobs,
            status=status,
            extras=extras,
            usage=Usage(prompt_tokens=sum(len(g.prompt) for g in request.groups)),
            completion_mask=mask,
        )

    def info(self) -> ReferenceInfo:
        raise AssertionError

    def close(self) -> None:
        pass


def tables(kind: str, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = {name: rng.normal(size=(TOKENS, VOCAB)) * 3 for name in WEIGHTS}
    if kind == "alike":
        logits = dict.fromkeys(WEIGHTS, logits["a"])
    if kind == "second choice":  # of nobody the best, and of the mixture it is
        for i, values in enumerate(logits.values()):
            values -= 50
            values[:, i], values[:, 30] = 0.4, 0.3
    return {name: v - np.logaddexp.reduce(v, axis=1, keepdims=True) for name, v in logits.items()}


def truth(rows: dict[str, np.ndarray]) -> np.ndarray:
    return np.log(sum(WEIGHTS[name] * np.exp(values) for name, values in rows.items()))


@pytest.mark.parametrize("kind", ["foreign", "alike", "second choice"])
@pytest.mark.parametrize("k", [1, 3, 8, VOCAB])
@pytest.mark.parametrize("top_dtype", ["float32", "float16"])
def test_the_best_of_a_mixture_are_the_best_of_all_tokens(kind: str, k: int, top_dtype: Any) -> None:
    rows = tables(kind)
    hosts = {name: Host(values) for name, values in rows.items()}
    wanted = [[[[1, 2]] * len(c) for c in group] for group in COMPLETIONS]
    result = Teachers(hosts).score(
        PROMPTS, COMPLETIONS, mixture=WEIGHTS, top_k=k, token_ids=wanted, extras=["tail"], top_dtype=top_dtype
    )
    full = truth(rows)
    order = np.argsort(-full, axis=1, kind="stable")
    near = 2e-6 if top_dtype == "float32" else 2**-10
    found: Any = result.extras
    assert {v.dtype.name for n, v in found.items() if n in ("top_logprobs", "token_logprobs")} == {top_dtype}
    assert found["top_ids"].dtype == np.int32
    best = np.take_along_axis(full, order[:, :k], axis=1)
    np.testing.assert_allclose(found["top_logprobs"], best, rtol=near, atol=2e-6)
    np.testing.assert_allclose(np.take_along_axis(full, found["top_ids"], axis=1), best, atol=2e-6)
    rest = np.logaddexp.reduce(np.take_along_axis(full, order[:, k:], axis=1), axis=1)
    np.testing.assert_allclose(found["top_tail"], rest, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(found["token_logprobs"], full[:, 1:3], rtol=near, atol=2e-6)
    others = np.delete(full, [1, 2], axis=1)
    np.testing.assert_allclose(found["token_tail"], np.logaddexp.reduce(others, axis=1), rtol=2e-6, atol=2e-6)
    rounds = {len(host.asked) for host in hosts.values()}
    assert rounds == {2} if kind == "alike" or k == VOCAB else rounds <= {2, 4, 6, 8}
    assert result.usage.prompt_tokens == sum(len(p) for p in PROMPTS) * rounds.pop() * len(hosts)


def test_a_vocabulary_that_is_padded_further_has_no_mass_elsewhere() -> None:
    rows = tables("foreign")
    more = np.pad(rows["c"], ((0, 0), (0, 3)), constant_values=-30.0)
    hosts = {"a": Host(rows["a"]), "b": Host(rows["b"]), "c": Host(more)}
    result = Teachers(hosts).score(PROMPTS, COMPLETIONS, mixture=WEIGHTS, top_k=VOCAB)
    np.testing.assert_allclose(
        np.take_along_axis(truth(rows), np.minimum(result.extras["top_ids"], VOCAB - 1), axis=1)[:, :5],
        result.extras["top_logprobs"][:, :5],
        atol=2e-6,
    )


def test_what_is_not_asked_or_failed_holds_nothing_up() -> None:
    rows = tables("alike")
    mask = [[[1, 0, 1], []], [[1, 1], [1]]]
    hosts = {name: Host(values, failed=2 if name == "b" else None) for name, values in rows.items()}
    result = Teachers(hosts).score(PROMPTS, COMPLETIONS, mixture=WEIGHTS, top_k=3, completion_mask=mask)
    assert result.status.tolist() == [Status.OK, Status.OK, Status.NONFINITE, Status.OK]
    assert np.isnan(result.extras["top_logprobs"][[1, 3, 4]]).all()
    assert result.extras["top_ids"][1].tolist() == [-1, -1, -1]
    asked = [0, 2, 5]
    best = -np.sort(-rows["a"], axis=1)[:, :3]
    np.testing.assert_allclose(result.extras["top_logprobs"][asked], best[asked], atol=2e-6)
    assert {len(host.asked) for host in hosts.values()} == {2}


def test_no_token_has_no_best() -> None:
    hosts = {name: Host(values) for name, values in tables("foreign").items()}
    assert len(Teachers(hosts).score([[1]], [[[]]], mixture=WEIGHTS, top_k=3).logprobs) == 0
