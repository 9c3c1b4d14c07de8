"""The endpoint that is probed: asks it in its dialect, once, and says what went wrong when something does."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from pydantic_core import from_json

from grpo_client.errors import GrpoClientError
from grpo_client.http.exchange import Call, Reply, raise_for_status
from grpo_client.http.transport import BaseTransport, SyncTransport
from grpo_client.probe.cases import Case
from grpo_client.probe.dialects import DIALECTS, Dialect, Scores
from grpo_client.settings import ClientSettings


class EndpointFailed(RuntimeError):
    """No usable answer. status: of the response, or None where there was none or its shape was wrong."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Endpoint:
    """Scores cases at a URL. model: the name to ask for, else what /v1/models lists first.

    Raises ValueError for an unknown dialect, EndpointFailed as soon as something cannot be answered.
    """

    def __init__(
        self, url: str, dialect: str, *, model: str | None = None, transport: BaseTransport | None = None
    ) -> None:
        if dialect not in DIALECTS:
            raise ValueError(f"dialect must be one of {', '.join(DIALECTS)}, got {dialect!r}")
        settings = ClientSettings.of(url, {})
        self._url = settings.urls[0]
        self._http = SyncTransport(settings.transport(), transport)
        self._dialect: Dialect = DIALECTS[dialect]
        self._model = model if model is not None or not self._dialect.needs_model else self._first_model()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def score(self, cases: Sequence[Case], temperature: float = 1.0) -> list[Scores]:
        """(len(case),) log-probs of each, NaN where the endpoint says that one is not finite."""
        if not self._dialect.many and len(cases) > 1:
            return [self.score([case], temperature)[0] for case in cases]
        dialect = self._dialect
        headers = {"Content-Type": dialect.media, "Accept": dialect.media}
        reply = self._send(Call("POST", dialect.path, headers, dialect.build(self._model or "", cases, temperature)))
        try:
            scores = dialect.read(bytes(reply.body), cases)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise EndpointFailed(f"the answer has another shape: {type(error).__name__}: {error}") from error
        if [len(s) for s in scores] != [len(c) for c in cases]:
            raise EndpointFailed(
                f"{[len(c) for c in cases]} positions were asked, {[len(s) for s in scores]} came back"
            )
        return [np.asarray(s, dtype=np.float64) for s in scores]

    def _first_model(self) -> str:
        reply = self._send(Call("GET", "/v1/models"))
        try:
            listed: Any = from_json(reply.body)
            return str(listed["data"][0]["id"])
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise EndpointFailed("/v1/models lists no model; name one with --model") from error

    def _send(self, call: Call) -> Reply:
        try:
            reply = self._http.send(call, self._url)
        except GrpoClientError as error:
            raise EndpointFailed(str(error)) from error
        try:
            raise_for_status(reply)
        except GrpoClientError as error:
            raise EndpointFailed(str(error), reply.status) from error
        return reply
