"""Both clients against the fake reference: what holds for one holds for the other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from grpo_client import (
    APIError,
    AsyncReferenceClient,
    ClientClosed,
    DeadlineExceeded,
    FingerprintMismatch,
    InvalidResponse,
    NotAuthorized,
    NotFound,
    ProtocolError,
    ReferenceClient,
    RequestRefused,
    RetryPolicy,
    ScoreRequest,
    ServerFailed,
    Unavailable,
)

PROMPTS = [[1, 2, 3], [7]]
COMPLETIONS = [[[4, 5], [], [6]], [[8, 9, 10]]]


class Blocking:
    """The async client with the sync one's face, so that one test speaks to both."""

    def __init__(self, url: Any, reference: Any, time: Any, **options: Any) -> None:
        self._arguments = (url, httpx.MockTransport(reference.async_handler()), time, options)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        url, transport, time, options = self._arguments

        async def call(*args: Any, **kwargs: Any) -> Any:
            async with AsyncReferenceClient(url, transport=transport, sleep=time.async_sleep, **options) as client:
                return await getattr(client, name)(*args, **kwargs)

        return lambda *args, **kwargs: asyncio.run(call(*args, **kwargs))


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest, reference, time):
    """connect(url, **options): a client of the fake reference, whose clock passes only in sleep."""
    opened: list[ReferenceClient] = []

    def build(url: Any = "http://ref", *, to: Any = None, **options: Any) -> Any:
        if not {"max_wait", "retry"} & options.keys():
            options["retry"] = RetryPolicy(max_wait=100.0, clock=time.clock)
        if request.param == "async":
            return Blocking(url, to or reference, time, **options)
        opened.append(ReferenceClient(url, transport=httpx.MockTransport(to or reference), sleep=time.sleep, **options))
        return opened[-1]

    yield build
    for client in opened:
        client.close()


@pytest.mark.parametrize("encoding", ["tensors", "json"])
@pytest.mark.parametrize("max_request_tokens", [32_768, 4])
def test_scores_in_order(connect, scored, encoding: str, max_request_tokens: int) -> None:
    client = connect(encoding=encoding, max_request_tokens=max_request_tokens)
    options: dict[str, Any] = {"temperature": [0.5, 2.0], "extras": ["entropy", "rank"], "top_k": 2}
    result = client.score(PROMPTS, COMPLETIONS, **options)
    expected = scored(ScoreRequest.of(PROMPTS, COMPLETIONS, **options))
    assert result.logprobs.tolist() == expected.logprobs.tolist()
    assert result.extras["top_ids"].shape == (6, 2)
    assert [len(group) for group in result.groups()] == [3, 1]
    assert result.reference.fingerprint == "f00d"


@pytest.mark.parametrize("encoding", ["tensors", "json"])
def test_text_goes_as_json_and_brings_the_ids(connect, reference, encoding: str) -> None:
    client = connect(encoding=encoding)
    messages = [{"role": "user", "content": "hi"}]
    result = client.score_text(["ab", messages], [["c", ""], ["de"]])
    assert reference.seen[0].headers["content-type"] == "application/json"
    assert [bytes(ids.tolist()) for ids in result.prompt_ids] == [b"ab", b"hi"]
    assert [bytes(ids.tolist()) for ids in result.completion_ids] == [b"c", b"", b"de"]


def test_a_broken_request_is_not_sent(connect, reference) -> None:
    client = connect()
    with pytest.raises(ProtocolError, match="BOS"):
        client.score([[]], [[[1]]])
    assert reference.seen == []


def test_key_and_request_id_travel_and_the_key_stays_hidden(connect, reference) -> None:
    reference.before = lambda request: httpx.Response(503) if len(reference.seen) == 1 else None
    connect(api_key="s3cret").info()
    first, second = reference.seen
    assert first.headers["authorization"] == second.headers["authorization"] == "Bearer s3cret"
    assert first.headers["x-request-id"] == second.headers["x-request-id"] != ""


def test_key_from_the_environment(connect, reference, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_API_KEY", "from-env")
    connect().info()
    assert reference.seen[0].headers["authorization"] == "Bearer from-env"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, RequestRefused), (401, NotAuthorized), (403, NotAuthorized), (404, NotFound), (409, FingerprintMismatch),
        (413, RequestRefused), (415, RequestRefused), (422, RequestRefused), (500, ServerFailed), (302, ServerFailed),
    ],
)  # fmt: skip
def test_what_cannot_succeed_is_asked_once(connect, reference, refusal, status: int, kind: type[Exception]) -> None:
    reference.before = lambda request: refusal(status, "shorten the prompt", param="groups[0]", x_request_id="r1")
    with pytest.raises(kind, match="shorten the prompt") as caught:
        connect().score(PROMPTS, COMPLETIONS)
    assert len(reference.seen) == 1
    if isinstance(caught.value, APIError):
        assert (caught.value.status, caught.value.param, caught.value.request_id) == (status, "groups[0]", "r1")


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_may_succeed_later_is_asked_again(connect, reference, refusal, time, status: int) -> None:
    reference.before = lambda request: refusal(status, "later", Retry_After="7") if len(reference.seen) < 3 else None
    assert len(connect().score(PROMPTS, COMPLETIONS)) == 4
    assert len(time.slept) == 2
    assert min(time.slept) >= 7.0


@pytest.mark.parametrize("error", [httpx.ConnectError, httpx.ReadTimeout, httpx.RemoteProtocolError, httpx.ReadError])
def test_a_lost_line_is_taken_up_again(connect, reference, error: type[httpx.TransportError]) -> None:
    def lose(request: httpx.Request) -> None:
        if len(reference.seen) == 1:
            raise error("lost")

    reference.before = lose
    assert len(connect().score(PROMPTS, COMPLETIONS)) == 4


def test_it_gives_up_at_the_deadline(connect, reference, refusal, time) -> None:
    reference.before = lambda request: refusal(503, "loading the model")
    with pytest.raises(DeadlineExceeded, match="loading the model") as caught:
        connect().score(PROMPTS, COMPLETIONS)
    assert isinstance(caught.value.__cause__, Unavailable)
    assert time.now < 100.0


def test_a_dead_server_is_left_for_a_living_one_at_once(connect, reference, time) -> None:
    def dead(request: httpx.Request) -> None:
        if request.url.host == "dead":
            raise httpx.ConnectError("refused")

    reference.before = dead
    client = connect(["http://dead", "http://alive"], max_request_tokens=4, max_in_flight=1)
    assert len(client.score(PROMPTS, COMPLETIONS)) == 4
    assert time.now == 0.0
    assert [r.url.host for r in reference.seen].count("dead") == 1


@pytest.mark.parametrize("pin", ["first", "f00d"])
def test_a_changed_reference_is_an_error(connect, reference, make_reference, refusal, pin: str) -> None:
    changing = make_reference()
    changing.before = lambda request: setattr(changing, "fingerprint", "f00d" if len(changing.seen) == 1 else "beef")
    client = connect(to=changing, fingerprint=pin, max_request_tokens=4, max_in_flight=1)
    with pytest.raises(FingerprintMismatch):
        client.score(PROMPTS, COMPLETIONS)
    assert changing.seen[-1].content.count(b"f00d") == 1, "the server is told the pin"


def test_an_unpinned_call_still_wants_one_reference(connect, make_reference) -> None:
    changing = make_reference()
    changing.before = lambda request: setattr(changing, "fingerprint", f"{len(changing.seen)}")
    with pytest.raises(FingerprintMismatch, match="same one"):
        connect(to=changing, max_request_tokens=4).score(PROMPTS, COMPLETIONS)


@pytest.mark.parametrize(
    "answer",
    [
        {"text": "<html>a proxy says hello</html>"},
        {"json": {"choices": []}},
        {"content": b"\0" * 99, "headers": {"content-type": "application/x-safetensors"}},
    ],
)
def test_another_program_is_no_reference(connect, reference, answer: dict[str, Any]) -> None:
    reference.before = lambda request: httpx.Response(200, **answer)
    with pytest.raises(InvalidResponse):
        connect().score(PROMPTS, COMPLETIONS)
    with pytest.raises(InvalidResponse):
        connect().info()


def test_an_answer_to_another_question_is_refused(connect, reference, make_reference) -> None:
    other = make_reference()
    with ReferenceClient("http://x", transport=httpx.MockTransport(other)) as client:
        client.score([[1]], [[[1, 1]]])
    stale = other(other.seen[0])
    reference.before = lambda request: stale
    with pytest.raises(InvalidResponse, match="came back"):
        connect().score(PROMPTS, COMPLETIONS)
    with pytest.raises(InvalidResponse, match="lengths"):
        connect().score([[1]], [[[1]]])
    with pytest.raises(InvalidResponse, match="lacks entropy"):
        connect().score([[1]], [[[1, 1]]], extras=["entropy"])


def test_health_info_and_waiting(connect, reference, refusal, time) -> None:
    reference.before = lambda request: refusal(503, "loading", Retry_After="3") if time.now < 10 else None
    client = connect()
    assert not client.health()
    assert client.wait_ready(60.0).model == "fake"
    assert time.now >= 10
    assert client.health()
    assert client.info().max_length == 64


def test_waiting_ends_with_what_was_waited_for_and_the_last_answer(connect, reference, refusal, time) -> None:
    def loading(request: httpx.Request) -> httpx.Response:
        return refusal(503, f"not ready yet (reading the weights, for {int(time.now)} s so far)", Retry_After="3")

    reference.before = loading
    with pytest.raises(DeadlineExceeded) as caught:
        connect().wait_ready(10.0)
    said = str(caught.value)
    assert said.startswith("gave up waiting for http://ref to be ready after 4 tries in ")
    assert "timeout=10 s" in said
    assert "reading the weights, for 9 s so far" in said
    assert "max_wait" not in said


def test_waiting_without_a_time_takes_that_of_any_request(connect, reference, refusal, time) -> None:
    reference.before = lambda request: refusal(503, "loading", Retry_After="3")
    own = RetryPolicy(max_wait=30.0, clock=time.clock, limit="reference.max_wait")
    with pytest.raises(DeadlineExceeded, match=r"past reference\.max_wait=30 s") as caught:
        connect(retry=own).wait_ready()
    assert "timeout" not in str(caught.value)
    assert 20 < time.now < 30


def test_a_description_that_stays_away_is_waited_for_as_long_as_was_said_not_what_was_left(
    connect, reference, refusal, time
) -> None:
    def undescribed(request: httpx.Request) -> httpx.Response | None:
        return None if request.url.path == "/readyz" and time.now > 8 else refusal(503, "loading", Retry_After="3")

    reference.before = undescribed
    with pytest.raises(DeadlineExceeded, match=r"past timeout=20 s\): HTTP 503: loading \(http://ref/v1/reference\)"):
        connect().wait_ready(20.0)
    assert time.now < 20.0


def test_results_do_not_depend_on_which_part_is_done_first(connect, reference, scored) -> None:
    prompts = [[k] for k in range(1, 20)]
    completions = [[[k, k + 1]] for k in range(19)]
    result = connect(max_request_tokens=1, max_in_flight=8).score(prompts, completions)
    assert np.array_equal(result.logprobs, scored(ScoreRequest.of(prompts, completions)).logprobs)
    assert len(reference.seen) == 19


@pytest.mark.parametrize(
    ("url", "options", "name"),
    [
        ("localhost:8000", {}, "base_url"), ([], {}, "base_url"), ("http://u:p@host", {}, "api_key"),
        ("http://x", {"encoding": "xml"}, "encoding"), ("http://x", {"timeout": 0}, "timeout"),
        ("http://x", {"max_in_flight": 0}, "max_in_flight"), ("http://x", {"max_request_tokens": 0}, "max_request_tokens"),
        ("http://x", {"max_wait": -1}, "max_wait"), ("http://x", {"max_wait": 1, "retry": RetryPolicy()}, "not both"),
    ],
)  # fmt: skip
def test_settings_are_checked(url: Any, options: dict[str, Any], name: str) -> None:
    for kind in (ReferenceClient, AsyncReferenceClient):
        with pytest.raises(ValueError, match=name):
            kind(url, **options)


def test_repr_shows_servers_and_no_key() -> None:
    with ReferenceClient(["http://a/", "http://b"], api_key="s3cret") as client:
        assert repr(client) == "ReferenceClient(http://a, http://b)"
        assert "s3cret" not in repr(client._workers.get().core.settings)


def test_submit_overlaps_with_other_work(reference) -> None:
    may_answer = threading.Event()
    reference.before = lambda request: None if may_answer.wait(30) else httpx.Response(500)
    with ReferenceClient("http://x", transport=httpx.MockTransport(reference), max_in_flight=2) as client:
        future = client.submit(PROMPTS, COMPLETIONS)
        assert not future.done()  # the server holds it, and here we are
        may_answer.set()
        assert len(future.result(30)) == 4


def test_submit_reports_a_broken_request_at_once_and_a_refusal_later(reference, refusal) -> None:
    reference.before = lambda request: refusal(413, "too long")
    with ReferenceClient("http://x", transport=httpx.MockTransport(reference)) as client:
        with pytest.raises(ProtocolError):
            client.submit([[1]], [[]])
        with pytest.raises(RequestRefused, match="too long"):
            client.submit([[1]], [[[1]]]).result(30)


def test_many_submitted_at_once_do_not_wait_for_themselves(reference) -> None:
    with ReferenceClient(
        "http://x", transport=httpx.MockTransport(reference), max_in_flight=1, max_request_tokens=2
    ) as client:
        futures = [client.submit(PROMPTS, COMPLETIONS) for _ in range(8)]
        assert all(len(f.result(30)) == 4 for f in futures)


def test_close_ends_waiting_and_use(reference) -> None:
    asked = threading.Event()

    def busy(request: httpx.Request) -> httpx.Response:
        asked.set()
        return httpx.Response(503, headers={"Retry-After": "600"})

    reference.before = busy
    client = ReferenceClient("http://x", transport=httpx.MockTransport(reference), max_wait=10_000)
    future = client.submit(PROMPTS, COMPLETIONS)
    assert asked.wait(30)
    client.close()
    assert isinstance(future.exception(30), Unavailable)
    for use in (lambda: client.score(PROMPTS, COMPLETIONS), client.info):
        with pytest.raises(ClientClosed):
            use()


def test_one_failed_part_stops_the_rest_async(reference, refusal) -> None:
    reference.before = lambda request: refusal(413, "too long")

    async def run() -> None:
        transport = httpx.MockTransport(reference.async_handler())
        async with AsyncReferenceClient(
            "http://x", transport=transport, max_request_tokens=1, max_in_flight=1
        ) as client:
            with pytest.raises(RequestRefused):
                await client.score([[1]] * 50, [[[1]]] * 50)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())
    assert len(reference.seen) < 50


def test_the_requests_of_a_prompt_go_to_one_server_whichever_client_asks(connect, reference) -> None:
    urls = ["http://a", "http://b", "http://c"]

    def asked(client: Any) -> dict[str, str]:
        before = len(reference.seen)
        for n in range(24):
            client.score([[n, 2, 3]], [[[4, 5]]])
        return {r.headers["x-prompt-key"]: r.url.host for r in reference.seen[before:]}

    first = asked(connect(urls))
    assert len(first) == 24
    assert set(first.values()) == {"a", "b", "c"}
    assert asked(connect(urls[::-1])) == first
