"""The probe against endpoints that lie in known ways: every lie must be seen, and an honest one must pass in every dialect."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx
import numpy as np
import pytest
from grpo_client import Group, ScoreResult, wire_tensors
from grpo_client.probe import DIALECTS, Endpoint, EndpointFailed, Outcome, run_checks
from grpo_client.probe.cases import Case, Facts
from grpo_client.probe.report import as_json, as_table, passed
from grpo_client.protocol import ReferenceInfo

VOCAB = 50
FACTS = Facts(VOCAB, 64, 2, ((5, 9, 14, 3, 22, 7), (8, 30, 11, 41, 6, 6, 19, 4, 33)))
TABLE = np.random.default_rng(3).normal(0, 3, (31, VOCAB))
TOLERANCE = 1e-3
INFO = ReferenceInfo(
    model="m", fingerprint="f", version=1, dtype="float32", mode="exact", max_length=64, vocab_size=VOCAB
)

# ids of one sequence, its first scored position, the temperature, and which sequence of how many requests this is
Score = Callable[[Sequence[int], float], list[float]]


def honest(ids: Sequence[int], temperature: float) -> list[float]:
    """(n - 1,) log-probs; the logits depend on all ids before."""
    with np.errstate(over="ignore", invalid="ignore"):
        rows = [TABLE[sum(ids[:t]) % 31] / np.float64(temperature) for t in range(1, len(ids))]
        values = [row[token] - np.logaddexp.reduce(row) for row, token in zip(rows, ids[1:], strict=True)]
        return [float(np.float32(v)) for v in values]


class TableOracle:
    facts = FACTS

    def score(self, cases: Sequence[Case], temperature: float = 1.0) -> list[np.ndarray]:
        return [np.array(honest(c.ids, temperature)[c.start - 1 :]) for c in cases]


def endpoint(dialect: str, score: Score = honest, *, vocab: int = VOCAB) -> Endpoint:
    """A server that speaks the dialect and scores in this way."""

    def serve(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "m"}]})
        if dialect == "native":
            groups = wire_tensors.decode_request(request.content).groups
            sequences = [([*g.prompt.tolist(), *g.completions[0].tolist()], len(g.prompt)) for g in groups]
            temperature = groups[0].temperature
        else:
            sequences, temperature = _read(json.loads(request.content))
        if any(i >= vocab for ids, _ in sequences for i in ids):
            return httpx.Response(422, json={"error": {"message": "no such id"}})
        rows = [score(ids, temperature)[start - 1 :] for ids, start in sequences]
        if dialect == "native":
            return httpx.Response(
                200, content=_native(groups, rows), headers={"content-type": "application/x-safetensors"}
            )
        text = json.dumps(_answer(dialect, sequences, rows))
        return httpx.Response(200, text=text.replace("Infinity", "null").replace("-null", "null"))

    return Endpoint("http://server", dialect, transport=httpx.MockTransport(serve))


def _read(body: Mapping[str, Any]) -> tuple[list[tuple[list[int], int]], float]:
    if "prompt" in body:
        return [(ids, 1) for ids in body["prompt"]], body["temperature"]
    if "token_ids" in body:
        return [(body["token_ids"], 1)], body["sampling_params"]["temperature"]
    if "input_ids" in body:
        return [(ids, 1) for ids in body["input_ids"]], body["sampling_params"]["temperature"]
    return list(zip(body["sequences"], body["prompt_lengths"], strict=True)), body["temperature"]


def _native(groups: Sequence[Group], rows: Sequence[Sequence[float]]) -> bytes:
    lengths = np.array([len(r) for r in rows], np.int32)
    return wire_tensors.encode_result(
        ScoreResult(
            reference=INFO,
            normalizer="softmax",
            temperature=np.ones(len(groups), np.float32),
            group_sizes=np.ones(len(groups), np.int32),
            completion_lengths=lengths,
            logprobs=np.array([v for r in rows for v in r], np.float32),
            status=np.zeros(len(rows), np.uint8),
        )
    )


def _answer(dialect: str, sequences: Sequence[tuple[Sequence[int], int]], rows: Sequence[Sequence[float]]) -> Any:
    def positions(ids: Sequence[int], row: Sequence[float]) -> list[Any]:
        return [None, *({str(i): {"logprob": v, "rank": 1}} for i, v in zip(ids[1:], row, strict=True))]

    pairs = [(list(ids), list(row)) for (ids, _), row in zip(sequences, rows, strict=True)]
    match dialect:
        case "openai":
            listed = [{"logprobs": {"token_logprobs": [None, *row, 0.0]}} for _, row in pairs]
            return {"choices": [{"index": i, **c} for i, c in reversed(list(enumerate(listed)))]}
        case "vllm":
            return {"choices": [{"index": i, "prompt_logprobs": positions(*p)} for i, p in enumerate(pairs)]}
        case "vllm-tokens":
            return {"prompt_logprobs": positions(*pairs[0])}
        case "sglang":
            return [
                {"meta_info": {"input_token_logprobs": [[v, i, None] for v, i in zip([None, *row], ids, strict=True)]}}
                for ids, row in pairs
            ]
        case _:
            widest = max(len(row) for _, row in pairs)
            padded = [row + [-np.inf] * (widest - len(row)) for _, row in pairs]
            return {
                "actual_logprobs_b64": base64.b64encode(np.array(padded, np.float32).tobytes()).decode(),
                "shape": [len(rows), widest, 1],
                "completion_lengths": [len(row) for row in rows],
            }


def verdicts(probed: Endpoint) -> dict[str, Outcome]:
    found = run_checks(probed, TableOracle(), tolerance=TOLERANCE, long=40)
    return {f.check: f.verdict for f in found}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_honest_endpoint_passes_in_every_dialect(dialect: str) -> None:
    results = list(run_checks(endpoint(dialect), TableOracle(), tolerance=TOLERANCE, long=40))
    assert {f.check: f.note for f in results if f.verdict is not Outcome.PASS} == {}
    assert passed(results)
    assert as_table("t", results).row_count == len(results)
    assert json.loads(json.dumps(as_json("u", dialect, "m", TOLERANCE, results)))["passed"] is True


def forgetful() -> Score:
    """The second time a sequence is asked, its first scored tokens are those of a cold start no more."""
    seen: set[tuple[int, ...]] = set()

    def score(ids: Sequence[int], temperature: float) -> list[float]:
        values = honest(ids, temperature)
        if tuple(ids) in seen and len(values) > 4:
            values[0] += 0.5
        seen.add(tuple(ids))
        return values

    return score


def no_eos(ids: Sequence[int], temperature: float) -> list[float]:
    """Takes end-of-text for padding and gives it nothing."""
    return [0.0 if i == FACTS.eos_id else v for i, v in zip(ids[1:], honest(ids, temperature), strict=True)]


def clamped(ids: Sequence[int], temperature: float) -> list[float]:
    """Takes 0.01 for any temperature below it."""
    return honest(ids, max(temperature, 0.01))


def short_sighted(ids: Sequence[int], temperature: float) -> list[float]:
    """Sees the last 16 tokens."""
    return [honest(ids[max(0, t - 16) : t + 1], temperature)[-1] for t in range(1, len(ids))]


def shifted(ids: Sequence[int], temperature: float) -> list[float]:
    """Off by one position."""
    values = honest(ids, temperature)
    return [*values[1:], *values[:1]]


@pytest.mark.parametrize(
    ("score", "caught"),
    [
        (lambda ids, t: honest(ids, 1.0), {"temperature 0.5", "temperature 2"}),
        (
            lambda ids, t: [v - 0.01 for v in honest(ids, t)],
            {"accuracy", "first token", "long input", "k3 noise floor"},
        ),
        (shifted, {"accuracy", "EOS is a token"}),
        (no_eos, {"EOS is a token"}),
        (clamped, {"not finite"}),
        (short_sighted, {"long input"}),
        (forgetful(), {"warm prefix cache"}),
    ],
)
def test_a_lie_is_seen(score: Score, caught: set[str]) -> None:
    failed = {check for check, verdict in verdicts(endpoint("openai", score)).items() if verdict is Outcome.FAIL}
    assert caught <= failed


def test_a_temperature_that_is_ignored_is_called_so() -> None:
    probed = endpoint("vllm", lambda ids, t: honest(ids, 1.0))
    notes = {f.check: f.note for f in run_checks(probed, TableOracle(), tolerance=TOLERANCE, long=40)}
    assert "ignored" in notes["temperature 2"]


def test_answers_that_depend_on_the_batch_are_seen_and_their_size_decides() -> None:
    for size, verdict in ((1e-5, Outcome.DIFFERS), (0.1, Outcome.FAIL)):
        calls = iter(range(10**6))

        def unsteady(ids: Sequence[int], t: float, size: float = size, calls: Any = calls) -> list[float]:
            return [v - size * (next(calls) % 3) for v in honest(ids, t)]

        assert verdicts(endpoint("sglang", unsteady))["alone or in a batch"] is verdict


def test_an_id_that_does_not_exist_must_not_be_scored() -> None:
    wrapped = endpoint("sglang", lambda ids, t: honest([i % VOCAB for i in ids], t), vocab=10**6)
    assert verdicts(wrapped)["id beyond the vocabulary"] is Outcome.FAIL


def test_bare_nan_is_no_json() -> None:
    line = httpx.MockTransport(
        lambda request: httpx.Response(200, text='[{"meta_info": {"input_token_logprobs": [NaN]}}]')
    )
    with pytest.raises(EndpointFailed, match="shape"):
        Endpoint("http://server", "sglang", transport=line).score([Case((1, 2), 1)])


def test_a_check_that_cannot_be_asked_fails_alone_with_the_servers_words() -> None:
    line = httpx.MockTransport(lambda request: httpx.Response(500, json={"error": {"message": "on fire"}}))
    results = list(
        run_checks(Endpoint("http://server", "sglang", transport=line), TableOracle(), tolerance=1e-3, long=40)
    )
    assert all(f.verdict is Outcome.FAIL and "on fire" in f.note for f in results)
    assert not passed(results)


def test_an_unknown_dialect_is_named() -> None:
    with pytest.raises(ValueError, match="openai"):
        Endpoint("http://server", "klingon")
