"""Fakes: a reference that scores by arithmetic behind a real encoder and decoder, and a clock that does not wait."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import numpy as np
import pytest
from grpo_client import (
    ProtocolError,
    ReferenceInfo,
    ScoreRequest,
    ScoreResult,
    TextScoreRequest,
    Usage,
    wire_json,
    wire_tensors,
)
from grpo_client.masking import filled
from grpo_client.protocol import MEDIA_TENSORS, ROUTE_LOGPROBS, ROUTE_REFERENCE, Group, figure_dtype, rounded


def reference_info(fingerprint: str = "f00d") -> ReferenceInfo:
    return ReferenceInfo(
        model="fake", fingerprint=fingerprint, version=1, dtype="float32", mode="exact", max_length=64, vocab_size=1000
    )


def fake_logprobs(prompt: np.ndarray, completion: np.ndarray, temperature: float) -> np.ndarray:
    """(C,) fp32 that depend on the prompt, on every token so far and on the temperature."""
    so_far = int(prompt.sum()) + np.cumsum(completion)
    return (-(so_far % 97 + 1) / 8 / temperature).astype(np.float32)


def fake_scores(request: ScoreRequest, fingerprint: str = "f00d") -> ScoreResult:
    pairs = [(g, c) for g in request.groups for c in g.completions]
    logprobs = np.concatenate([fake_logprobs(g.prompt, c, g.temperature) for g, c in pairs] or [np.empty(0)])
    extras: dict[str, np.ndarray] = {}
    for name in request.extras - {"tail"}:
        extras[name] = (-logprobs).astype(np.int32 if name == "rank" else np.float32)
    if request.top_k:
        extras["top_ids"] = np.tile(np.arange(request.top_k, dtype=np.int32), (len(logprobs), 1))
        extras["top_logprobs"] = -extras["top_ids"].astype(np.float32)
    if request.asked_ids is not None:
        extras["token_logprobs"] = np.full((len(logprobs), request.asked_ids), -1.5, np.float32)
    for name, beside in (("top_tail", "top_ids"), ("token_tail", "token_logprobs")):
        if "tail" in request.extras and beside in extras:
            extras[name] = logprobs.astype(np.float32) - 1
    extras = {name: rounded(values, figure_dtype(name, request.top_dtype)) for name, values in extras.items()}
    mask = request.completion_mask
    if mask is not None:
        logprobs = filled(logprobs[mask], mask)
        extras = {name: filled(values[mask], mask) for name, values in extras.items()}
    return ScoreResult(
        completion_mask=mask,
        reference=reference_info(fingerprint),
        normalizer="softmax",
        temperature=np.array([g.temperature for g in request.groups], dtype=np.float32),
        group_sizes=request.group_sizes,
        completion_lengths=request.completion_lengths,
        logprobs=logprobs.astype(np.float32),
        status=np.zeros(len(pairs), dtype=np.uint8),
        extras=extras,
        usage=Usage(
            prompt_tokens=sum(len(g.prompt) for g in request.groups),
            completion_tokens=len(logprobs),
            computed_tokens=len(logprobs),
        ),
    )


def tokenized(request: TextScoreRequest) -> ScoreRequest:
    """The fake tokenizer: one id a character; a chat message is its content."""

    def ids(text: str) -> np.ndarray:
        return np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int32)

    groups = tuple(
        Group(
            ids(g.prompt if isinstance(g.prompt, str) else "".join(m["content"] for m in g.prompt)),
            tuple(ids(c) for c in g.completions),
            g.temperature,
        )
        for g in request.groups
    )
    return ScoreRequest(groups, request.normalizer, request.extras, request.top_k, request.fingerprint)


@dataclass
class FakeReference:
    """An httpx handler. `before(request)` may answer in its place: that is how a test makes it fail."""

    fingerprint: str = "f00d"
    before: Callable[[httpx.Request], httpx.Response | None] = lambda request: None
    seen: list[httpx.Request] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        if (answer := self.before(request)) is not None:
            return answer
        match request.url.path:
            case "/readyz":
                return httpx.Response(200)
            case path if path == ROUTE_REFERENCE:
                return httpx.Response(200, content=reference_info(self.fingerprint).model_dump_json())
            case path if path == ROUTE_LOGPROBS:
                return self._scores(request)
        return httpx.Response(404, text="nothing here")

    def _scores(self, request: httpx.Request) -> httpx.Response:
        decode = (wire_tensors if request.headers["content-type"] == MEDIA_TENSORS else wire_json).decode_request
        try:
            asked = decode(request.content)
        except ProtocolError as error:
            return error_response(error.status, error.message, error.code, error.param)
        if asked.fingerprint not in (None, self.fingerprint):
            return error_response(409, f"this is {self.fingerprint}", "wrong_fingerprint", "fingerprint")
        result = self._answer(asked)
        encode = (wire_tensors if request.headers["accept"] == MEDIA_TENSORS else wire_json).encode_result
        return httpx.Response(200, content=encode(result), headers={"Content-Type": request.headers["accept"]})

    def _answer(self, asked: ScoreRequest | TextScoreRequest) -> ScoreResult:
        if isinstance(asked, ScoreRequest):
            return fake_scores(asked, self.fingerprint)
        ids = tokenized(asked)
        result = fake_scores(ids, self.fingerprint)
        return ScoreResult(
            **{
                **result.__dict__,
                "prompt_ids": tuple(g.prompt for g in ids.groups),
                "completion_ids": tuple(c for g in ids.groups for c in g.completions),
            }
        )

    def async_handler(self) -> Callable[[httpx.Request], object]:
        async def handle(request: httpx.Request) -> httpx.Response:
            await asyncio.sleep(0)  # give way, as a network would
            return self(request)

        return handle


def error_response(
    status: int, message: str, code: str = "x", param: str | None = None, **headers: str
) -> httpx.Response:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return httpx.Response(status, json={"error": error}, headers={k.replace("_", "-"): v for k, v in headers.items()})


class SocketServer(ThreadingHTTPServer):
    """The fake reference on a real socket. `die_on`: cut the line in the middle of the answer to that request."""

    daemon_threads = True

    def __init__(self, port: int, handle: Callable[[httpx.Request], httpx.Response], die_on: int | None = None) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.handle_request_ = handle
        self.die_on = die_on
        self.died = threading.Event()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: SocketServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = httpx.Request(self.command, f"http://fake{self.path}", headers=dict(self.headers), content=content)
        answer = self.server.handle_request_(request)
        self.send_response(answer.status_code)
        self.send_header("Content-Type", answer.headers.get("content-type", "text/plain"))
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        if self.server.die_on == 0:
            self.wfile.write(answer.content[: len(answer.content) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            self.server.died.set()
            return
        if self.server.die_on is not None:
            self.server.die_on -= 1
        self.wfile.write(answer.content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a test's output is its failures."""


@dataclass
class FakeTime:
    """Seconds that pass only when somebody sleeps."""

    now: float = 0.0
    slept: list[float] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    async def async_sleep(self, seconds: float) -> None:
        self.sleep(seconds)


@pytest.fixture
def reference() -> FakeReference:
    return FakeReference()


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def make_reference() -> type[FakeReference]:
    return FakeReference


@pytest.fixture
def scored() -> Callable[..., ScoreResult]:
    """The fake reference's own scoring, without a wire."""
    return fake_scores


@pytest.fixture
def refusal() -> Callable[..., httpx.Response]:
    """refusal(status, message, code, param, Header_Name=value): an OpenAI-shaped error."""
    return error_response


@pytest.fixture
def socket_server() -> type[SocketServer]:
    return SocketServer
