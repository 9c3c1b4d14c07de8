"""The client for ordinary code: blocking calls, and futures for what should overlap with other work.

Only waiting is done here. Requests are built and read, cut and joined, retried and balanced by what is shared with
`AsyncReferenceClient`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import Self, TypeVar, Unpack

from grpo_client.calls import Call, Reply, info_call, raise_for_status, ready_call
from grpo_client.core import ClientCore, Ids, ScoreOptions, TextScoreOptions
from grpo_client.errors import APIError, ClientClosed, ConnectionFailed
from grpo_client.policy import RetryPolicy
from grpo_client.protocol import ReferenceInfo, ScoreRequest, ScoreResult
from grpo_client.settings import ClientOptions, ClientSettings
from grpo_client.text import AnyRequest, Prompt, TextScoreRequest
from grpo_client.transport import SyncLine, SyncTransport

Answer = TypeVar("Answer")


class ReferenceClient:
    """Scores completions under the frozen reference that one or several servers host.

        with ReferenceClient("http://localhost:8000") as client:
            result = client.score([[1, 2, 3]], [[[4, 5], [6]]], temperature=0.7)
            result.ragged()      # [array([-1.2, -0.3]), array([-4.1])], fp32, nats

    base_url: a server, or a list of servers that host the same reference (least busy first, failed ones set aside).
    Options: see `ClientOptions`. transport, sleep: for tests; an httpx transport to talk to instead of the network, and
    what waits between tries. May be used from many threads. Close it, or use it in a `with`.
    """

    def __init__(
        self,
        base_url: str | Sequence[str],
        *,
        transport: SyncLine | None = None,
        sleep: Callable[[float], None] | None = None,
        **options: Unpack[ClientOptions],
    ) -> None:
        settings = ClientSettings.of(base_url, options)
        self._core = ClientCore(settings)
        self._transport = SyncTransport(settings.line(), transport)
        self._closed = threading.Event()
        self._sleep = sleep or self._wait_unless_closed
        # Two pools, because a submitted call waits for its parts: in one pool it could wait for itself.
        self._submitted = ThreadPoolExecutor(settings.max_in_flight, "grpo-client-submit")
        self._parts = ThreadPoolExecutor(settings.max_in_flight, "grpo-client-request")

    def score(
        self,
        prompts: Sequence[Ids],
        completions: Sequence[Sequence[Ids]],
        **options: Unpack[ScoreOptions],
    ) -> ScoreResult:
        """Per-token log-probs of completions[k][g] after prompts[k], all token ids. Options: see `ScoreOptions`.

        Raises ValueError (ProtocolError among it) for a request that no server could answer, RequestRefused for one that
        this server cannot, FingerprintMismatch, NotAuthorized, DeadlineExceeded when `max_wait` runs out.
        """
        return self.score_request(ScoreRequest.of(prompts, completions, **options))

    def score_text(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Sequence[str]],
        **options: Unpack[TextScoreOptions],
    ) -> ScoreResult:
        """The same for text: prompts are strings or chat messages, completions strings; the server tokenizes.

        The ids that were scored come back in `prompt_ids` and `completion_ids`.
        """
        return self.score_request(TextScoreRequest.of(prompts, completions, **options))

    def submit(
        self,
        prompts: Sequence[Ids],
        completions: Sequence[Sequence[Ids]],
        **options: Unpack[ScoreOptions],
    ) -> Future[ScoreResult]:
        """`score` in the background: returns at once, so that the policy's own forward can run meanwhile.

        A broken request raises here and now; what the server says comes out of `.result()`.
        """
        return self.submit_request(ScoreRequest.of(prompts, completions, **options))

    def score_request(self, request: AnyRequest) -> ScoreResult:
        """`score` for a request that is already a value."""
        return self._score_parts(request, self._plan(request))

    def submit_request(self, request: AnyRequest) -> Future[ScoreResult]:
        """`submit` for a request that is already a value."""
        return self._submitted.submit(self._score_parts, request, self._plan(request))

    def info(self) -> ReferenceInfo:
        """Who answers: model, fingerprint, version, dtype, mode, limits. With several servers, one of them."""
        return self._retried(self._core.settings.retry, self._core.info, info_call())

    def health(self) -> bool:
        """Whether a server takes requests now; one try, no waiting."""
        try:
            self._retried(RetryPolicy(max_wait=0), raise_for_status, ready_call())
        except (ConnectionFailed, APIError):
            return False
        return True

    def wait_ready(self, timeout: float = 600.0) -> ReferenceInfo:
        """Wait until a server takes requests, at most `timeout` seconds; says who it is. Raises DeadlineExceeded."""
        policy = replace(self._core.settings.retry, max_wait=timeout)
        self._retried(policy, raise_for_status, ready_call())
        return self._retried(policy, self._core.info, info_call())

    def close(self) -> None:
        """Give up what is waiting, let what is on the line finish, and close the connections."""
        self._closed.set()
        self._submitted.shutdown(wait=False, cancel_futures=True)
        self._parts.shutdown(wait=True, cancel_futures=True)
        self._submitted.shutdown(wait=True)
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"ReferenceClient({self._core!r})"

    def _wait_unless_closed(self, seconds: float) -> None:
        self._closed.wait(seconds)  # close() ends every wait

    def _plan(self, request: AnyRequest) -> Sequence[AnyRequest]:
        if self._closed.is_set():
            raise ClientClosed("this client is closed; build a new one")
        return self._core.plan(request)

    def _score_parts(self, request: AnyRequest, parts: Sequence[AnyRequest]) -> ScoreResult:
        futures = [self._parts.submit(self._score_part, part) for part in parts]
        try:
            return self._core.join(request, [future.result() for future in futures])
        finally:
            for future in futures:  # after a failure nobody wants the rest
                future.cancel()

    def _score_part(self, part: AnyRequest) -> ScoreResult:
        return self._retried(
            self._core.settings.retry, lambda reply: self._core.scores(reply, part), self._core.call(part)
        )

    def _retried(self, policy: RetryPolicy, read: Callable[[Reply], Answer], call: Call) -> Answer:
        if self._closed.is_set():
            raise ClientClosed("this client is closed; build a new one")
        balancer = self._core.balancer

        def once() -> Answer:
            with balancer.lease() as url:
                return read(self._transport.send(call, url))

        return policy.retrying(self._sleep, balancer.ready, self._closed.is_set)(once)
