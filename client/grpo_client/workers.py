"""What a `ReferenceClient` has of its own in each process: connections, threads, and the work that they do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextvars import copy_context  # the caller's trace goes with the work
from typing import TypeVar

from grpo_client.core import ClientCore
from grpo_client.errors import ClientClosed, GrpoClientError
from grpo_client.http.exchange import Call, Reply
from grpo_client.http.retry import RetryPolicy
from grpo_client.http.transport import BaseTransport, SyncTransport
from grpo_client.moving import Answers, Steps, advance_move, not_away
from grpo_client.protocol import ReferenceInfo, ScoreResult
from grpo_client.text import AnyRequest
from grpo_client.tracing import span
from grpo_client.uploading import ModelFile, OnProgress, Sending, advance, same

Answer = TypeVar("Answer")


class Workers:
    """core: planning and reading, without I/O. transport: in place of the network. sleep: what waits between tries."""

    def __init__(
        self, core: ClientCore, transport: BaseTransport | None, sleep: Callable[[float], None] | None
    ) -> None:
        self.core = core
        self._transport = SyncTransport(core.settings.transport(), transport)
        self._closed = threading.Event()
        self._sleep = sleep or self._wait_unless_closed
        # Two pools, because a submitted call waits for its parts: in one pool it could wait for itself.
        self._submitted = ThreadPoolExecutor(core.settings.max_in_flight, "grpo-client-submit")
        self._parts = ThreadPoolExecutor(core.settings.max_in_flight, "grpo-client-request")

    def score(self, request: AnyRequest) -> ScoreResult:
        """Score a request, in parts if it is big, and wait."""
        return self._score_parts(request, self.core.plan(request))

    def submit(self, request: AnyRequest) -> Future[ScoreResult]:
        """The same, without waiting. A broken request raises here."""
        parts = self.core.plan(request)
        try:
            return self._submitted.submit(copy_context().run, self._score_parts, request, parts)
        except RuntimeError as error:
            raise closed() from error

    def retried(self, policy: RetryPolicy, read: Callable[[Reply], Answer], call: Call) -> Answer:
        """Send a call until an answer can be read or the policy gives up."""
        self.core.settings.check_key()
        if self._closed.is_set():
            raise closed()
        balancer, log = self.core.balancer, self.core.log

        def once() -> Answer:
            with balancer.lease(call.key) as url:
                answer = read(self._transport.send(call, url))
            log.answered(url)
            return answer

        return policy.retrying(self._sleep, balancer.ready, self._closed.is_set, log)(once)

    def moved(self, steps: Steps) -> list[ReferenceInfo]:
        """Carry the steps of a move out: the calls of each round at once."""
        answers: Answers | None = None
        while True:
            if self._closed.is_set():
                raise closed()
            step = advance_move(steps, answers)
            if isinstance(step, list):
                return step
            # threads of their own: each of the servers, which may be many, must be there at the same time
            with ThreadPoolExecutor(len(step.calls), "grpo-client-move") as pool:
                asked = {url: pool.submit(self._answer, call, url, step.patient) for url, call in step.calls.items()}
                answers = {url: future.result() for url, future in asked.items()}

    def _answer(self, call: Call, url: str, patient: bool) -> Reply | GrpoClientError:
        def once() -> Reply:
            return not_away(self._transport.send(call, url))

        policy = self.core.settings.retry
        try:
            if not patient:
                return self._transport.send(call, url)
            return policy.retrying(self._sleep, lambda: False, self._closed.is_set, self.core.log)(once)
        except GrpoClientError as error:
            return error

    def upload(self, files: list[ModelFile], admin_key: str | None, on_progress: OnProgress) -> str:
        """Bring a model to every server, one after the other; what to name to have it hosted."""
        self.core.settings.check_key()
        urls, size = self.core.settings.urls, sum(file.size for file in files)
        models: list[str] = []
        for n, url in enumerate(urls):
            sending = Sending(files, admin_key, lambda there, n=n: on_progress(n * size + there, len(urls) * size))
            models.append(self._sent(sending, url))
        return same(models)

    def _sent(self, sending: Sending, url: str) -> str:
        def once() -> str | None:
            steps = sending.attempt()
            step = advance(steps, None)
            try:
                while not isinstance(step, str):
                    step = advance(steps, self._transport.send(step, url))
            except GrpoClientError as error:
                if not sending.goes_on_after(error):
                    raise
                return None
            self.core.log.answered(url)
            return step

        model: str | None = None
        while model is None:
            if self._closed.is_set():
                raise closed()
            policy = self.core.settings.retry
            model = policy.retrying(self._sleep, lambda: False, self._closed.is_set, self.core.log)(once)
        return model

    def close(self) -> None:
        """Give up what is waiting, let what is under way finish, and close the connections."""
        self._closed.set()
        self._submitted.shutdown(wait=False, cancel_futures=True)
        self._parts.shutdown(wait=True, cancel_futures=True)
        self._submitted.shutdown(wait=True)
        self._transport.close()

    def _wait_unless_closed(self, seconds: float) -> None:
        self._closed.wait(seconds)  # close() ends every wait

    def _score_parts(self, request: AnyRequest, parts: Sequence[AnyRequest]) -> ScoreResult:
        with span("grpo_client.score", {"grpo.parts": len(parts)}):
            return self._joined(request, parts)

    def _joined(self, request: AnyRequest, parts: Sequence[AnyRequest]) -> ScoreResult:
        futures: list[Future[ScoreResult]] = []
        try:
            futures += [self._parts.submit(copy_context().run, self._score_part, part) for part in parts]
            return self.core.join(request, [future.result() for future in futures])
        except CancelledError as error:
            raise closed() from error
        except RuntimeError as error:
            if not futures:  # the pool takes nothing more
                raise closed() from error
            raise
        finally:
            for future in futures:  # after a failure nobody wants the rest
                future.cancel()

    def _score_part(self, part: AnyRequest) -> ScoreResult:
        core = self.core
        return self.retried(core.settings.retry, lambda reply: core.scores(reply, part), core.call(part))


def closed() -> ClientClosed:
    """The error of a client that is used after it was closed."""
    return ClientClosed("this client is closed; build a new one")
