"""Several teachers: each group by its own, or all mixed; the caller's order, and the bits of each alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from grpo_client import (
    AsyncReferenceClient,
    FingerprintMismatch,
    InvalidResponse,
    ProtocolError,
    ReferenceClient,
    Teachers,
    TokenizerIdentity,
)

PROMPTS = [[1, 2, 3], [7], [9, 9], [4]]
COMPLETIONS = [[[4, 5], [6]], [[8, 9, 10], []], [[1], [2, 3]], [[5], [7, 7]]]
IDS = [[[[1, 2]] * len(c) for c in group] for group in COMPLETIONS]
NAMES = ["math", "code", "math", "code"]


@pytest.fixture
def hosts(make_reference: Any) -> dict[str, Any]:
    return {name: make_reference(fingerprint=name) for name in ("math", "code")}


@pytest.fixture
def teachers(hosts: dict[str, Any]) -> Iterator[Teachers]:
    def answer(request: httpx.Request) -> httpx.Response:
        return hosts[request.url.host](request)

    with (
        ReferenceClient("http://student", transport=httpx.MockTransport(answer), max_wait=0) as client,
        client.teachers({name: f"http://{name}" for name in hosts}) as several,
    ):
        yield several


def alone(host: Any, picked: list[int], **how: Any) -> Any:
    with ReferenceClient("http://x", transport=httpx.MockTransport(host)) as client:
        return client.score(
            [PROMPTS[k] for k in picked], [COMPLETIONS[k] for k in picked], token_ids=[IDS[k] for k in picked], **how
        )


def test_each_group_has_the_bits_of_its_teacher_alone(teachers: Teachers, hosts: dict[str, Any]) -> None:
    how: dict[str, Any] = {"temperature": [0.5, 1.0, 2.0, 1.5], "extras": ["tail", "rank"], "top_k": 2}
    result = teachers.score(PROMPTS, COMPLETIONS, teacher=NAMES, token_ids=IDS, **how)
    assert result.teacher == tuple(NAMES)
    assert {name: info.fingerprint for name, info in result.references.items()} == {"math": "math", "code": "code"}
    assert result.temperature.tolist() == how["temperature"]
    groups = list(result.groups())
    for name, picked in (("math", [0, 2]), ("code", [1, 3])):
        own = alone(hosts[name], picked, **how | {"temperature": [how["temperature"][k] for k in picked]})
        for k, group in zip(picked, own.groups(), strict=True):
            for mine, theirs in zip(groups[k], group, strict=True):
                assert mine.logprobs.tobytes() == theirs.logprobs.tobytes()
                for extra, values in theirs.extras.items():
                    np.testing.assert_array_equal(mine.extras[extra], values)
    assert [len(host.seen) for host in hosts.values()] == [2, 2]  # one request each, and the one alone


def test_a_mixture_is_of_probabilities(teachers: Teachers, hosts: dict[str, Any]) -> None:
    result = teachers.score(
        PROMPTS, COMPLETIONS, mixture={"math": 0.25, "code": 0.75}, token_ids=IDS, extras=["tail"], temperature=2.0
    )
    one, other = (alone(hosts[name], [0, 1, 2, 3], extras=["tail"], temperature=2.0) for name in ("math", "code"))
    for mixed, a, b in (
        (result.logprobs, one.logprobs, other.logprobs),
        *((result.extras[n], one.extras[n], other.extras[n]) for n in ("token_logprobs", "token_tail")),
    ):
        expected = np.log(0.25 * np.exp(a.astype(np.float64)) + 0.75 * np.exp(b.astype(np.float64)))
        np.testing.assert_allclose(mixed, expected, rtol=1e-6)
    assert set(result.references) == {"math", "code"}


@pytest.mark.parametrize(
    ("how", "param"),
    [
        ({"teacher": ["math", "art", "math", "code"]}, "teacher[1]"),
        ({"teacher": ["math", None, "math", "code"]}, "teacher[1]"),
        ({"teacher": ["math"]}, "teacher"),
        ({}, "teacher[0]"),
        ({"mixture": {"math": 0.5, "art": 0.5}}, "mixture"),
        ({"mixture": {"math": 0.5, "code": 0.6}}, "mixture"),
        ({"mixture": {"math": 1.5, "code": -0.5}}, "mixture"),
        ({"mixture": {"math": 1.0}, "teacher": "math"}, "mixture"),
        ({"mixture": {"math": 1.0}, "top_k": 2, "extras": ["entropy"]}, "mixture"),
    ],
)
def test_what_cannot_be_is_refused_before_anybody_is_asked(
    teachers: Teachers, hosts: dict[str, Any], how: dict[str, Any], param: str
) -> None:
    with pytest.raises(ProtocolError) as found:
        teachers.score(PROMPTS, COMPLETIONS, **how)
    assert found.value.param == param
    assert not any(host.seen for host in hosts.values())


def test_a_default_takes_what_has_no_teacher(hosts: dict[str, Any]) -> None:
    clients = {n: ReferenceClient("http://x", transport=httpx.MockTransport(h)) for n, h in hosts.items()}
    with Teachers(clients, default="code") as several:
        assert several.score([[1], [2]], [[3], [4]], teacher=[None, "math"]).teacher == ("code", "math")
    with pytest.raises(ProtocolError, match="no teacher here"):
        Teachers(clients, default="art")


def test_another_reference_behind_a_teacher_is_an_error(teachers: Teachers, hosts: dict[str, Any]) -> None:
    teachers.score([[1]], [[2]], teacher="math")
    hosts["math"].fingerprint = "changed"
    with pytest.raises(FingerprintMismatch):
        teachers.score([[1]], [[2]], teacher="math")


@pytest.mark.parametrize(("tokens", "same"), [((100, "a"), True), ((90, "b"), False), ((100, "b"), False)])
def test_another_tokenizer_is_told_with_both_sizes(make_reference: Any, tokens: tuple[int, str], same: bool) -> None:
    def teacher(size: int, print_: str) -> ReferenceClient:
        host = make_reference()

        def answer(request: httpx.Request) -> httpx.Response:
            response = host(request)
            if request.url.path != "/v1/reference":
                return response
            said = response.json() | {"tokenizer_fingerprint": print_, "tokens": size, "vocab_size": 128}
            return httpx.Response(200, json=said)

        return ReferenceClient("http://x", transport=httpx.MockTransport(answer))

    with Teachers({"one": teacher(100, "a"), "two": teacher(*tokens)}, tokenizer="same") as several:
        if same:
            assert len(several.score([[1]], [[2]], teacher="two")) == 1
            return
        with pytest.raises(InvalidResponse, match=rf"two .*{tokens[0]} tokens.* one \(100 tokens"):
            several.score([[1]], [[2]], teacher="two")


def test_teachers_are_compared_with_the_tokenizer_at_hand(make_reference: Any) -> None:
    class Student:
        def __init__(self, *tokens: str) -> None:
            self.tokens = tokens

        def get_vocab(self) -> dict[str, int]:
            return {token: i for i, token in enumerate(self.tokens)}

    served = TokenizerIdentity.of(Student("a", "b"))
    host = make_reference()

    def answer(request: httpx.Request) -> httpx.Response:
        response = host(request)
        told = {"tokenizer_fingerprint": served.fingerprint, "tokens": served.tokens}
        return response if request.method == "POST" else httpx.Response(200, json=response.json() | told)

    with ReferenceClient("http://x", transport=httpx.MockTransport(answer)) as client:
        with client.teachers({"one": "http://a", "two": "http://b"}, tokenizer=Student("a", "b")) as same:
            assert len(same.score([[1]], [[2]], teacher="two")) == 1
        with (
            client.teachers({"one": "http://a", "two": "http://b"}, tokenizer=Student("a", "c", "b")) as other,
            pytest.raises(InvalidResponse, match=r"one .*\(2 tokens, .*local tokenizer \(3 tokens"),
        ):
            other.score([[1]], [[2]], teacher="two")


@pytest.mark.anyio
async def test_an_async_client_has_the_same_teachers(teachers: Teachers, hosts: dict[str, Any]) -> None:
    async def answer(request: httpx.Request) -> httpx.Response:
        return hosts[request.url.host](request)

    asked: list[dict[str, Any]] = [
        {"teacher": NAMES, "token_ids": IDS, "top_k": 2, "extras": ["rank", "tail"]},
        {"mixture": {"math": 0.25, "code": 0.75}, "token_ids": IDS, "extras": ["tail"]},
    ]
    async with (
        AsyncReferenceClient("http://student", transport=httpx.MockTransport(answer), max_wait=0) as client,
        client.teachers({name: f"http://{name}" for name in hosts}) as several,
    ):
        for how in asked:
            mine, theirs = await several.score(PROMPTS, COMPLETIONS, **how), teachers.score(PROMPTS, COMPLETIONS, **how)
            assert (mine.teacher, mine.references) == (theirs.teacher, theirs.references)
            assert mine.logprobs.tobytes() == theirs.logprobs.tobytes()
            assert mine.extras.keys() == theirs.extras.keys()
            for name, values in theirs.extras.items():
                np.testing.assert_array_equal(mine.extras[name], values)
        seen = [len(host.seen) for host in hosts.values()]
        with pytest.raises(ProtocolError, match="no teacher here"):
            await several.score(PROMPTS, COMPLETIONS, teacher="art")
        assert [len(host.seen) for host in hosts.values()] == seen
        async with client.teachers({"math": "http://math"}, tokenizer="same") as others:
            with pytest.raises(InvalidResponse, match="math does not say"):
                await others.score([[1]], [[2]], teacher="math")
