"""What changed on the way is no answer: `Content-Digest`, written and read by both clients."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from grpo_client import (
    AsyncReferenceClient,
    ConnectionFailed,
    ReferenceClient,
    RequestRefused,
    ScoreRequest,
    wire_json,
    wire_tensors,
)
from grpo_client.content_digest import HEADER, ContentDigest, header_of
from grpo_client.protocol import MEDIA_JSON, MEDIA_TENSORS, ScoreResult

Score = Callable[[ScoreRequest], ScoreResult]


def test_the_header_is_as_the_rfc_has_it() -> None:
    """The example of RFC 9530, appendix B.1."""
    assert header_of([b'{"hello": "world"}\n']) == "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:"
    assert header_of([b'{"hello":', memoryview(b' "world"}\n')]) == header_of([b'{"hello": "world"}\n'])


@pytest.mark.parametrize(
    ("header", "fits"),
    [
        (None, True),
        ("", True),
        ("md5=:AAAA:", True),
        ("md5=:AAAA:, {right}", True),
        ("{right}, sha-512=:AAAA:", True),
        ("sha-256=:AAAA:", False),
        ("sha-256=:{wrong}:", False),
        ("sha-256=?1", False),
        ("sha-256=", False),
        ("sha-256=:é:", False),
    ],
)
def test_what_names_no_sha256_says_nothing_and_what_cannot_be_read_says_no(header: str | None, fits: bool) -> None:
    digest = ContentDigest()
    digest.add(b"bytes")
    wrong = base64.b64encode(hashlib.sha256(b"bits").digest()).decode()
    told = header and header.replace("{right}", digest.header).replace("{wrong}", wrong)
    assert digest.fits(told) is fits


def ask(handler: Callable[[httpx.Request], httpx.Response], *, awaited: bool, encoding: Any, **options: Any) -> Any:
    transport = httpx.MockTransport(handler)
    if not awaited:
        options = {"sleep": lambda seconds: None, **options}
        with ReferenceClient("http://x", transport=transport, encoding=encoding, **options) as client:
            return client.score([[1, 2]], [[[3, 4], [5]]])

    async def wait(seconds: float) -> None: ...

    async def score() -> Any:
        own = {"sleep": wait, **options}
        async with AsyncReferenceClient("http://x", transport=transport, encoding=encoding, **own) as client:
            return await client.score([[1, 2]], [[[3, 4], [5]]])

    return asyncio.run(score())


def answer(request: httpx.Request, score: Score) -> tuple[bytes, dict[str, str], ScoreRequest]:
    wire = wire_tensors if request.headers["content-type"] == MEDIA_TENSORS else wire_json
    asked = wire.decode_request(request.content)
    body = wire.encode_result(score(asked))
    media = MEDIA_TENSORS if wire is wire_tensors else MEDIA_JSON
    return body, {"Content-Type": media, HEADER: header_of([body])}, asked


@pytest.mark.parametrize("awaited", [False, True])
@pytest.mark.parametrize("encoding", ["tensors", "json"])
def test_an_answer_with_one_bit_flipped_is_asked_for_again(awaited: bool, encoding: str, scored: Score) -> None:
    asked: list[ScoreRequest] = []

    def handler(request: httpx.Request) -> httpx.Response:
        assert request.headers[HEADER] == header_of([request.content])
        body, headers, message = answer(request, scored)
        asked.append(message)
        if (n := len(asked)) < 10:
            at = len(body) * n // 10
            body = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        return httpx.Response(200, headers=headers, content=body)

    result = ask(handler, awaited=awaited, encoding=encoding)
    assert len(asked) == 10
    assert result.logprobs.tolist() == scored(asked[0]).logprobs.tolist()


@pytest.mark.parametrize("awaited", [False, True])
def test_the_error_names_the_server_and_what_is_wrong(awaited: bool, scored: Score) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        body, headers, _ = answer(request, scored)
        return httpx.Response(200, headers=headers, content=body[:-1])

    with pytest.raises(ConnectionFailed, match=r"http://x/v1/logprobs: the answer changed on the way.*Content-Digest"):
        ask(handler, awaited=awaited, encoding="tensors", max_wait=0)


@pytest.mark.parametrize("awaited", [False, True])
def test_an_answer_that_a_proxy_packed_fits_its_digest(awaited: bool, scored: Score) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        body, headers, _ = answer(request, scored)
        return httpx.Response(200, headers={**headers, "Content-Encoding": "gzip"}, content=gzip.compress(body))

    assert ask(handler, awaited=awaited, encoding="json", max_wait=0).logprobs.size == 3


@pytest.mark.parametrize("status", [400, 408])
@pytest.mark.parametrize("awaited", [False, True])
def test_a_request_that_did_not_arrive_as_it_was_sent_is_sent_again(awaited: bool, status: int, scored: Score) -> None:
    refusals = iter([{"error": {"message": "changed", "code": "digest_mismatch" if status == 400 else "timeout"}}] * 2)

    def handler(request: httpx.Request) -> httpx.Response:
        if (refusal := next(refusals, None)) is not None:
            return httpx.Response(status, json=refusal)
        body, headers, _ = answer(request, scored)
        return httpx.Response(200, headers=headers, content=body)

    assert ask(handler, awaited=awaited, encoding="tensors").logprobs.size == 3


def test_another_400_is_not_sent_again() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(400, json={"error": {"message": "no", "code": "malformed_request"}})

    with pytest.raises(RequestRefused):
        ask(handler, awaited=False, encoding="tensors")
