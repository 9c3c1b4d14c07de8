"""Limits on what httptools collects: it has none of its own."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from grpo_server.connections.guard import Guard
from grpo_server.connections.refusal import head_too_large, too_many_headers, uri_too_long
from grpo_server.errors import ErrorCode, ServiceError

# Requests sent ahead on one connection, before the first is answered. No client of this service does so at all.
MAX_PIPELINED = 64


class GuardedHttpTools(Guard, HttpToolsProtocol):
    """Counts what the parser hands over, and what it keeps to itself: bytes that led to no call."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._refusal: ServiceError | None = None
        self._in_head = False
        self._whole = True  # the message before is complete
        self._head_bytes = self._headers = self._kept = self._begun = 0
        self._called = False

    def awaits_request(self) -> bool:
        return self._whole or self._in_head

    def has_begun(self) -> bool:
        return self._in_head

    def data_received(self, data: bytes) -> None:
        self._called, self._begun, between = False, 0, self._whole
        super().data_received(data)
        if self._begun == 1 and between and self._in_head:
            self._kept = len(data)  # all of it is the beginning of one head
        else:
            # Of a chunk that ended something, the parser keeps no more than the chunk.
            self._kept = 0 if self._called else self._kept + len(data)
        if self._kept > self.house.limits.header_bytes and not self._whole:
            self.refuse(head_too_large(self.house.limits.header_bytes))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._whole = True, False
        self._head_bytes = self._headers = 0
        self._called = True
        self._begun += 1

    def on_url(self, url: bytes) -> None:
        self._head_bytes += len(url)
        if self._head_bytes > self.house.limits.header_bytes:
            raise self._stop(uri_too_long(self.house.limits.header_bytes))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers += 1
        self._head_bytes += len(name) + len(value) + 4
        if self._headers > self.house.limits.headers:
            raise self._stop(too_many_headers(self.house.limits.headers))
        if self._head_bytes > self.house.limits.header_bytes:
            raise self._stop(head_too_large(self.house.limits.header_bytes))
        if self._in_head:  # a trailer comes too late to be a header, whatever its name
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._called = True
        if len(self.pipeline) >= MAX_PIPELINED:
            raise self._stop(ServiceError(ErrorCode.MALFORMED, "too many requests were sent ahead"))
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._called = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._whole = self._called = True
        super().on_message_complete()

    def _stop(self, refusal: ServiceError) -> ServiceError:
        """To be raised in a callback: the parser stops, and uvicorn calls `send_400_response`."""
        self._refusal = self._refusal or refusal
        return refusal

    def send_400_response(self, msg: str) -> None:
        if self._refusal is None:
            super().send_400_response(msg)
        else:
            self.refuse(self._refusal)
