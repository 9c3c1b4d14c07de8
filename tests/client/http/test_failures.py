"""Whatever goes wrong on the line comes out as one of the documented errors, with what helps and without what is secret."""

from __future__ import annotations

import asyncio
import inspect
import pickle
import traceback
from typing import Any

import grpo_client
import httpx
import pytest
from grpo_client import (
    APIError,
    AsyncReferenceClient,
    ClientClosed,
    ConnectionFailed,
    FingerprintMismatch,
    GrpoClientError,
    InvalidResponse,
    InvalidSetting,
    NotFound,
    ProtocolError,
    ReferenceClient,
    RequestRefused,
    Unavailable,
)

LIBRARY = sorted(
    (kind for _, kind in inspect.getmembers(httpx, inspect.isclass) if issubclass(kind, Exception)),
    key=lambda k: k.__name__,
)


def raised(kind: type[Exception]) -> Exception:
    if issubclass(kind, httpx.HTTPStatusError):
        return kind("s3cret", request=httpx.Request("GET", "http://x"), response=httpx.Response(500))
    if issubclass(kind, httpx.StreamError) and kind is not httpx.StreamError:
        return kind()  # type: ignore[call-arg]
    return kind("Illegal header value b'Bearer s3cret'")


def shown(error: BaseException) -> str:
    """What a traceback shows of an error and of those behind it, less the lines of this file, which hold the secret."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    return "\n".join(line for line in lines if not line.startswith("    "))


def ask(handler: Any, *, awaited: bool, **options: Any) -> Any:
    if not awaited:
        with ReferenceClient("http://x", transport=httpx.MockTransport(handler), max_wait=0, **options) as client:
            return client.score([[1]], [[[2]]])

    async def score() -> Any:
        transport = httpx.MockTransport(handler)
        async with AsyncReferenceClient("http://x", transport=transport, max_wait=0, **options) as client:
            return await client.score([[1]], [[[2]]])

    return asyncio.run(score())


@pytest.mark.parametrize("awaited", [False, True])
@pytest.mark.parametrize("kind", LIBRARY, ids=lambda kind: kind.__name__)
def test_every_failure_of_the_library_is_one_of_ours(kind: type[Exception], awaited: bool) -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise raised(kind)

    with pytest.raises(GrpoClientError) as caught:
        ask(fail, awaited=awaited)
    assert type(caught.value) in (ConnectionFailed, InvalidResponse, InvalidSetting)
    assert "http://x" in str(caught.value)
    if kind in (httpx.LocalProtocolError, httpx.InvalidURL, httpx.UnsupportedProtocol):
        assert "s3cret" not in shown(caught.value), "it may quote a header or a URL"
    if issubclass(kind, httpx.TimeoutException | httpx.NetworkError | httpx.RemoteProtocolError | httpx.ProxyError):
        assert isinstance(caught.value, ConnectionFailed), "which is tried again"
        assert caught.value.url == "http://x"
        assert caught.value.request_id


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("awaited", [False, True])
def test_a_body_that_cannot_be_unpacked(encoding: str, awaited: bool) -> None:
    def garbled(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=Stream(b"no such thing"), headers={"Content-Encoding": encoding})

    with pytest.raises(InvalidResponse, match="Content-Encoding"):
        ask(garbled, awaited=awaited)


class Stream(httpx.SyncByteStream, httpx.AsyncByteStream):
    def __init__(self, data: bytes) -> None:
        self._data = data

    def __iter__(self):
        yield self._data

    async def __aiter__(self):
        yield self._data


@pytest.mark.parametrize("status", [400, 401, 404, 409, 422, 429, 500, 503])
@pytest.mark.parametrize("awaited", [False, True])
def test_an_error_keeps_everything_that_the_server_said(refusal, status: int, awaited: bool) -> None:
    answer = refusal(status, "no", "some_code", "groups[3].prompt", X_Request_Id="r-77", Retry_After="3")
    with pytest.raises(GrpoClientError) as caught:
        ask(lambda request: answer, awaited=awaited)
    error = caught.value
    assert isinstance(error, APIError | FingerprintMismatch)
    assert (error.status, error.code, error.param, error.request_id) == (
        status,
        "some_code",
        "groups[3].prompt",
        "r-77",
    )
    for said in ("no", "groups[3].prompt", "r-77", "http://x/v1/logprobs"):
        assert said in str(error)


def test_without_an_id_of_the_servers_own_the_one_that_was_sent_is_named() -> None:
    sent: list[str] = []

    def refuse(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers["x-request-id"])
        return httpx.Response(404, text="nothing here")

    with pytest.raises(NotFound, match="nothing here") as caught:
        ask(refuse, awaited=False)
    assert caught.value.request_id == sent[0]
    with pytest.raises(InvalidResponse) as unusable:
        ask(lambda request: httpx.Response(200, text="hello"), awaited=False)
    assert unusable.value.request_id in str(unusable.value)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\xff\xfe", b"[]", b"null", b'"no"', b'{"error": "no"}', b'{"error": {"code": 7, "param": ["x"]}}', b"x" * 10**6,
        b'{"error": {"message": "' + b"y" * 10**6 + b'"}}', b'{"detail": [{"loc": ["body"]}]}', b"[" * 100_000,
    ],
    ids=range(11),
)  # fmt: skip
def test_what_a_proxy_says_with_an_error_is_no_further_error(body: bytes) -> None:
    with pytest.raises(RequestRefused) as caught:
        ask(lambda request: httpx.Response(400, content=body), awaited=False)
    assert caught.value.code is None
    assert caught.value.param is None
    assert len(str(caught.value)) < 3000


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0), ({"Retry-After": "1.5"}, 1.5), ({"Retry-After-Ms": "250"}, 0.25),
        ({"Retry-After-Ms": "250", "Retry-After": "1"}, 0.25), ({"Retry-After-Ms": "soon", "Retry-After": "1"}, 1.0),
        ({"Retry-After-Ms": "-1", "Retry-After": "2"}, 2.0), ({"Retry-After-Ms": "nan"}, None), ({"Retry-After": "-7"}, None),
        ({"Retry-After": "inf"}, None), ({"Retry-After": "9" * 400}, 3600.0), ({"Retry-After-Ms": "9" * 400}, 3600.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0), ({"Retry-After": "Wed, 21 Oct 9999 07:28:00 GMT"}, 3600.0),
        ({"Retry-After": "Wed, 21 Oct 99999999 07:28:00 GMT"}, None), ({"Retry-After": "Wed, 41 Oct 2015 07:28:00 GMT"}, None),
        ({"Retry-After": "1_000"}, None), ({"Retry-After": "٣"}, None), ({}, None),
    ],
)  # fmt: skip
def test_how_long_the_server_asked_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    with pytest.raises(Unavailable) as caught:
        ask(lambda request: httpx.Response(503, headers=encoded), awaited=False)
    assert caught.value.retry_after == seconds


def test_errors_cross_processes_whole() -> None:
    errors: list[GrpoClientError] = [
        ProtocolError("m", "groups[0]", "c", 422), InvalidResponse("m", "p", "r"), ClientClosed("m"),
        RequestRefused("m", status=413, code="c", param="p", request_id="r", retry_after=1.0, url="u"),
        ConnectionFailed("m", url="u", request_id="r"),
        FingerprintMismatch("m", status=409, code="c", param="p", request_id="r"), InvalidSetting("m"),
    ]  # fmt: skip
    for error in errors:
        copy = pickle.loads(pickle.dumps(error))  # noqa: S301  # our own
        assert type(copy) is type(error)
        assert (str(copy), copy.args, copy.__dict__) == (str(error), error.args, error.__dict__)


def test_every_exported_error_is_a_client_error() -> None:
    exported = [getattr(grpo_client, name) for name in grpo_client.__all__]
    kinds = [kind for kind in exported if inspect.isclass(kind) and issubclass(kind, Exception)]
    assert len(kinds) > 10
    assert all(issubclass(kind, GrpoClientError) for kind in kinds)


@pytest.mark.parametrize(
    "url",
    [
        "htp://user:s3cret@host", "http://user:s3cret@host", "user:s3cret@host", "http://s3cret@host", "http://h?key=s3cret",
        "http://h#s3cret", "http://u:s3cret@h:port", "http://u:s3cret@[::1", "http://u:s3cret@/x", "//u:s3cret@h", "s3cret@",
        "http://u:s3@cret@h", "ftp://h/?token=s3cret", "http://h:99999/?s3cret",
    ],
)  # fmt: skip
def test_no_error_repeats_what_a_url_hides(url: str) -> None:
    for kind in (ReferenceClient, AsyncReferenceClient):
        with pytest.raises(InvalidSetting, match="base_url") as caught:
            kind(url)
        assert "s3cret" not in shown(caught.value)
        assert "s3@" not in shown(caught.value)


@pytest.mark.parametrize("key", ["s3cret\nX-Evil: 1", "s3cret\0", "s3cret\r", "\ud800s3cret", 7, b"s3cret"])
def test_a_key_that_no_header_can_carry(key: Any) -> None:
    with pytest.raises(InvalidSetting, match="api_key") as caught:
        ReferenceClient("http://x", api_key=key + "x" if isinstance(key, str) else key)
    assert "s3cret" not in shown(caught.value)


def test_a_key_may_end_in_a_newline_and_need_not_be_ascii(reference, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_API_KEY", "schlüssel\n")
    with ReferenceClient("http://x", transport=httpx.MockTransport(reference)) as client:
        client.info()
    assert dict(reference.seen[0].headers.raw)[b"Authorization"] == "Bearer schlüssel".encode()


def test_a_proxy_that_cannot_be_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    for proxy in ("gopher://u:s3cret@proxy", "http://u:s3cret@[::1"):
        monkeypatch.setenv("ALL_PROXY", proxy)
        with pytest.raises(InvalidSetting, match="HTTP_PROXY") as caught:
            ReferenceClient("http://x")
        assert "s3cret" not in shown(caught.value)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"timeout": "5"}, "timeout"), ({"timeout": None}, "timeout"), ({"timeout": float("nan")}, "timeout"),
        ({"timeout": True}, "timeout"), ({"max_wait": "5"}, "max_wait"), ({"max_wait": float("nan")}, "max_wait"),
        ({"max_in_flight": 1.5}, "max_in_flight"), ({"max_in_flight": True}, "max_in_flight"),
        ({"fingerprint": ""}, "fingerprint"), ({"fingerprint": 7}, "fingerprint"),
        ({"max_request_tokens": "8"}, "max_request_tokens"),
        ({"encoding": None}, "encoding"), ({"retry": 5}, "retry"),
        ({"timeout": float("inf")}, "timeout"), ({"timeout": 1e12}, "timeout"),
    ],
)  # fmt: skip
def test_settings_of_another_kind(options: dict[str, Any], name: str) -> None:
    for kind in (ReferenceClient, AsyncReferenceClient):
        with pytest.raises(InvalidSetting, match=name):
            kind("http://x", **options)


@pytest.mark.parametrize(
    "url", [None, 7, b"http://x", {"http://x"}, [], [None], ["http://x", 7], "", " ", "http://a b"]
)
def test_what_is_no_url(url: Any) -> None:
    for kind in (ReferenceClient, AsyncReferenceClient):
        with pytest.raises(InvalidSetting, match="base_url"):
            kind(url)
