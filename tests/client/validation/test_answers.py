"""An answer is held against its question, in both encodings: a wrong one is an error, never a number."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from grpo_client import FingerprintMismatch, GrpoClientError, InvalidResponse, ReferenceClient
from safetensors.numpy import load, save

PROMPTS = [[1, 2, 3], [7]]
COMPLETIONS = [[[4, 5], []], [[8, 9, 10]]]
ASKED: dict[str, Any] = {
    "temperature": [0.5, 2.0], "extras": ["entropy", "rank", "logsumexp"], "top_k": 2,
    "token_ids": [[[[1, 2], [3, 4]], []], [[[5, 6], [7, 8], [9, 10]]]],
}  # fmt: skip


def header_of(body: bytes) -> dict[str, str]:
    return json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])["__metadata__"]


@pytest.fixture
def ask(reference, scored) -> Callable[..., Any]:
    """ask(change, encoding): score, with the fake's answer changed on its way."""

    def go(change: Callable[[Any], Any], encoding: str, text: bool = False, **options: Any) -> Any:
        def garbled(request: httpx.Request) -> httpx.Response:
            reference.before = lambda _: None
            answer = reference(request)
            reference.before = garbled
            if encoding == "json":
                message = json.loads(answer.content)
                for group in message["groups"] if not text else ():
                    group["token_logprobs"] = [[[-1.0, -2.0] for _ in row] for row in group["logprobs"]]
                change(message)
                return httpx.Response(200, json=message)
            arrays, metadata = load(answer.content), header_of(answer.content)
            if not text:
                arrays["token_logprobs"] = np.full((5, 2), -1.0, np.float32)
            change((arrays, metadata))
            body = save({name: np.ascontiguousarray(values) for name, values in arrays.items()}, metadata)
            return httpx.Response(200, content=body, headers={"Content-Type": answer.headers["content-type"]})

        reference.before = garbled
        with ReferenceClient(
            "http://x", transport=httpx.MockTransport(reference), encoding=encoding, max_wait=0, **options
        ) as client:
            if text:
                return client.score_text(["ab", "c"], [["d", ""], ["ef"]])
            return client.score(PROMPTS, COMPLETIONS, **ASKED)

    return go


@pytest.mark.parametrize("encoding", ["json", "tensors"])
def test_a_right_answer_passes(ask, encoding: str) -> None:
    result = ask(lambda message: None, encoding)
    assert len(result.logprobs) == 5
    assert result.extras["token_logprobs"].shape == (5, 2)
    assert len(ask(lambda message: None, encoding, text=True)) == 3


def put(path: str, value: Any) -> Callable[[Any], None]:
    """A change of JSON: "groups.0.logprobs.0.1" is one figure. `...` takes the entry away."""

    def change(message: Any) -> None:
        *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
        for step in way:
            message = message[step]
        if value is ...:
            del message[last]
        else:
            message[last] = value

    return change


JSON_FAULTS: dict[str, tuple[Callable[[Any], Any], str | None]] = {
    "above 0": (put("groups.0.logprobs.0.1", 0.5), "logprobs"),
    "a string": (put("groups.0.logprobs.0.1", "-0.5"), "logprobs"),
    "true": (put("groups.0.logprobs.0.1", True), "logprobs"),
    "a list": (put("groups.0.logprobs.0.1", [-0.5]), "logprobs"),
    "a string of figures": (put("groups.0.logprobs.0", "12"), "logprobs"),
    "null and ok": (put("groups.0.logprobs.0.1", None), "not finite"),
    "beyond fp32 and ok": (put("groups.0.logprobs.0.1", -1e300), "not finite"),
    "a number of 400 digits": (put("groups.0.logprobs.0.1", -(10**400)), None),
    "a figure too few": (put("groups.0.logprobs.0", [-0.5]), None),
    "a completion too few": (put("groups.1", ...), None),
    "groups swapped": (lambda m: m["groups"].reverse(), None),
    "status of another kind": (put("groups.0.status.0", "fine"), None),
    "status as a number": (put("groups.0.status.0", 0), None),
    "status too few": (put("groups.0.status", ["ok"]), "status"),
    "status missing": (put("groups.0.status", ...), None),
    "another temperature": (put("temperature", [0.5, 1.0]), "temperature"),
    "temperatures swapped": (put("temperature", [2.0, 0.5]), "temperature"),
    "one temperature": (put("temperature", 0.5), "temperature"),
    "one temperature in a list": (put("temperature", [0.5]), "temperature"),
    "temperature as text": (put("temperature", ["0.5", "2.0"]), "temperature"),
    "another normalizer": (put("reference.normalizer", "stablemax"), "stablemax"),
    "reference missing": (put("reference", ...), "reference"),
    "fingerprint as a number": (put("reference.fingerprint", 7), "fingerprint"),
    "vocabulary as text": (put("reference.vocab_size", "1000"), "vocab_size"),
    "usage as text": (put("usage.prompt_tokens", "3"), "prompt_tokens"),
    "extra missing": (lambda m: [g.pop("entropy") for g in m["groups"]], "entropy"),
    "extra missing in one group": (put("groups.1.entropy", ...), "entropy"),
    "token_logprobs missing": (lambda m: [g.pop("token_logprobs") for g in m["groups"]], "token_logprobs"),
    "entropy as text": (put("groups.0.entropy.0.0", "1"), "entropy"),
    "entropy null": (put("groups.0.entropy.0.0", None), "entropy"),
    "rank half": (put("groups.0.rank.0.0", 1.5), "rank"),
    "rank null": (put("groups.0.rank.0.0", None), "rank"),
    "rank below 0": (put("groups.0.rank.0.0", -1), "rank"),
    "rank beyond the vocabulary": (put("groups.0.rank.0.0", 1000), "rank"),
    "top ids beyond the vocabulary": (put("groups.0.top_ids.0.0", [0, 1000]), "top_ids"),
    "top ids beyond int32": (put("groups.0.top_ids.0.0", [0, 2**40]), None),
    "top ids too few": (lambda m: [t.pop() for g in m["groups"] for c in g["top_ids"] for t in c], "top_ids"),
    "top ids ragged": (put("groups.0.top_ids.0.0", [0]), "top_ids"),
    "top log-probs above 0": (put("groups.0.top_logprobs.0.0", [0.5, -1]), "top_logprobs"),
    "top log-probs as text": (put("groups.0.top_logprobs.0.0", ["-1", "-1"]), "top_logprobs"),
    "asked ids' log-probs above 0": (put("groups.1.token_logprobs.0.0", [-1, 3]), "token_logprobs"),
}  # fmt: skip


@pytest.mark.parametrize("name", JSON_FAULTS)
def test_a_fault_in_json(ask, name: str) -> None:
    change, said = JSON_FAULTS[name]
    with pytest.raises(InvalidResponse, match=said) as caught:
        ask(change, "json")
    assert len(str(caught.value)) < 1000
    assert "[request " in str(caught.value)


def array(name: str, values: Any) -> Callable[[Any], None]:
    def change(answer: Any) -> None:
        arrays, _ = answer
        if values is ...:
            del arrays[name]
        elif isinstance(values, dict):
            for at, value in values.items():
                arrays[name][at] = value
        else:
            arrays[name] = values

    return change


def metadata(name: str, old: str, new: str) -> Callable[[Any], None]:
    def change(answer: Any) -> None:
        assert old in answer[1][name]
        answer[1][name] = answer[1][name].replace(old, new)

    return change


TENSOR_FAULTS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "above 0": (array("logprobs", {1: 0.01}), "logprobs"),
    "infinite": (array("logprobs", {1: np.inf}), "logprobs"),
    "NaN and ok": (array("logprobs", {1: np.nan}), "not finite"),
    "minus infinity and ok": (array("logprobs", {1: -np.inf}), "not finite"),
    "float64": (array("logprobs", -np.ones(5)), "logprobs"),
    "two dimensions": (array("logprobs", -np.ones((5, 1), np.float32)), "logprobs"),
    "too few": (array("logprobs", -np.ones(4, np.float32)), "logprobs"),
    "lengths below 0": (array("completion_lengths", np.array([6, -4, 3], np.int32)), "below 0"),
    "other lengths": (array("completion_lengths", np.array([1, 1, 3], np.int32)), "lengths"),
    "group sizes swapped": (array("group_sizes", np.array([1, 2], np.int32)), "other groups"),
    "group sizes below 0": (array("group_sizes", np.array([4, -1], np.int32)), "below 0"),
    "unknown status": (array("status", {1: 7}), "status"),
    "too few status": (array("status", np.zeros(2, np.uint8)), "status"),
    "another temperature": (array("temperature", {1: 1.0}), "temperature"),
    "too few temperatures": (array("temperature", np.array([0.5], np.float32)), "temperature"),
    "another normalizer": (metadata("reference", "softmax", "stablemax"), "stablemax"),
    "extra missing": (array("rank", ...), "rank"),
    "token_logprobs missing": (array("token_logprobs", ...), "token_logprobs"),
    "token_logprobs too narrow": (array("token_logprobs", -np.ones((5, 1), np.float32)), "token_logprobs"),
    "token_logprobs NaN": (array("token_logprobs", {(0, 0): np.nan}), "token_logprobs"),
    "top ids too wide": (array("top_ids", np.zeros((5, 3), np.int32)), "top_ids"),
    "top ids below 0": (array("top_ids", {(0, 0): -1}), "top_ids"),
    "entropy NaN": (array("entropy", {0: np.nan}), "entropy"),
    "logsumexp NaN": (array("logsumexp", {0: np.nan}), "logsumexp"),
    "no reference": (lambda answer: answer[1].pop("reference"), "reference"),
    "version as text": (metadata("reference", '"version":1', '"version":"1"'), "version"),
}  # fmt: skip


@pytest.mark.parametrize("name", TENSOR_FAULTS)
def test_a_fault_in_tensors(ask, name: str) -> None:
    change, said = TENSOR_FAULTS[name]
    with pytest.raises(InvalidResponse, match=said):
        ask(change, "tensors")


def test_what_is_not_finite_is_let_through_where_the_status_says_so(ask) -> None:
    def unusable(answer: Any) -> None:
        arrays, _ = answer
        arrays["status"][0] = 1
        arrays["logprobs"][:2] = np.nan, -np.inf
        arrays["entropy"][:2] = arrays["top_logprobs"][:2] = np.nan

    result = ask(unusable, "tensors")
    assert np.isnan(result.logprobs[0])
    assert result.status.tolist() == [1, 0, 0]


def test_rounding_above_0_and_ids_without_mass_are_let_through(ask) -> None:
    def rounded(answer: Any) -> None:
        arrays, _ = answer
        arrays["logprobs"][0] = 2e-5
        arrays["token_logprobs"][0] = 1e-6, -np.inf

    assert ask(rounded, "tensors").logprobs[0] == np.float32(2e-5)


@pytest.mark.parametrize(
    "change",
    [
        put("groups.0.prompt", ...), put("groups.0.completions", [[1, 2], []]), put("groups.0.completions.0", [1.5]),
        put("groups.0.completions.0", ["1"]), lambda m: [g.pop("completions") for g in m["groups"]],
        lambda m: [g.pop("prompt") for g in m["groups"]],
    ],
)  # fmt: skip
def test_text_brings_the_ids_that_it_became(ask, change: Any) -> None:
    with pytest.raises(InvalidResponse):
        ask(change, "json", text=True)


@pytest.mark.parametrize("encoding", ["json", "tensors"])
def test_a_wrong_fingerprint_under_a_pin(ask, encoding: str) -> None:
    change = put("reference.fingerprint", "beef") if encoding == "json" else metadata("reference", "f00d", "beef")
    with pytest.raises(FingerprintMismatch, match="beef"):
        ask(change, encoding, fingerprint="f00d")


@pytest.mark.parametrize(
    ("field", "value"), [("max_length", "64"), ("version", None), ("vocab_size", 1.5), ("mode", 7)]
)
def test_a_reference_that_describes_itself_otherwise(reference, field: str, value: Any) -> None:
    def other(request: httpx.Request) -> httpx.Response:
        described = {
            "model": "m",
            "fingerprint": "f",
            "version": 1,
            "dtype": "d",
            "mode": "exact",
            "max_length": 1,
            "vocab_size": 1,
        }
        return httpx.Response(200, json={**described, field: value})

    with (
        ReferenceClient("http://x", transport=httpx.MockTransport(other), max_wait=0) as client,
        pytest.raises(GrpoClientError, match=field),
    ):
        client.info()
