"""The guard of one connection, mixed into either of uvicorn's protocols: deadlines, its place in the house, unread answers.

Between requests, and while a head comes in, one timer runs; it is not put off by data that complete nothing. While a
request is under way the application watches (`middleware.pace`). After an answer, what is still unsent of the body that
went with it gets one more timer, and so does an answer that is not read.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from grpo_server.connections.house import House
from grpo_server.connections.refusal import head_too_slow, not_http, response_bytes
from grpo_server.errors import ServiceError
from grpo_server.middleware.bodies.pace import MIN_BYTES_PER_SECOND


class Guard(asyncio.Protocol):
    """Stands before a uvicorn protocol in the order of bases. `house` is set by a subclass for each server."""

    house: ClassVar[House]
    transport: Any
    cycle: Any
    flow: Any
    loop: Any
    connections: set[Any]
    server_state: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_for = ""
        self._answers = 0
        self._reading: asyncio.TimerHandle | None = None
        self._unread = 0
        self._read_some = False

    # --- what the two parsers know ----------------------------------------------------------------------------------

    def awaits_request(self) -> bool:
        """The message before is complete, and the head of the next one is not."""
        raise NotImplementedError

    def has_begun(self) -> bool:
        """Bytes of that head have come."""
        raise NotImplementedError

    # --- a connection comes and goes --------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._settle(had_data=True)
        try:
            self.house.enter(self, len(self.connections))
        except ServiceError as error:
            self.refuse(error)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.house.works(self)
        self._arm("", 0)
        self._stop_reading()

    def make_room(self) -> None:
        self.transport.abort()

    # --- deadlines --------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._settle(had_data=True)

    def on_response_complete(self) -> None:
        super().on_response_complete()  # pyright: ignore[reportAttributeAccessIssue]
        self._answers += 1
        self._settle(had_data=False)
        self._watch_reader()

    def _settle(self, *, had_data: bool) -> None:
        """Whoever must do the next step has a deadline."""
        if self.transport.is_closing():
            self.house.works(self)
            self._arm("", 0)
            return
        answered = self.cycle is None or self.cycle.response_complete
        waits = answered and self.awaits_request()
        if answered:
            self.house.waits(self, stranger=not self._answers or not waits)
        else:
            self.house.works(self)
        if waits and (had_data or self.has_begun()):
            self._arm("head", self.house.limits.header_seconds)
        elif answered and not waits:
            self._arm("rest of a body", self.house.limits.stall_seconds)
        else:
            self._arm("", 0)  # the application's turn, or uvicorn's own timer for idle connections

    def _arm(self, reason: str, seconds: float) -> None:
        if reason == self._timer_for:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_for = reason
        self._timer = self.loop.call_later(seconds, self._too_late) if reason else None

    def _too_late(self) -> None:
        self._timer, reason, self._timer_for = None, self._timer_for, ""
        if reason == "head" and self.has_begun():
            self.refuse(head_too_slow(self.house.limits.header_seconds))
        else:
            self.transport.abort()

    # --- answers that are not read ----------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        super().pause_writing()
        self._count_unread(self.transport.get_write_buffer_size())
        self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._count_unread(0)
        self._read_some = True

    def _count_unread(self, nbytes: int) -> None:
        """Bytes of answers that wait for their reader are in the books of the house."""
        self.house.budget.hold(nbytes - self._unread)
        self._unread = nbytes

    def _watch_reader(self) -> None:
        if self._reading is None and (left := self.transport.get_write_buffer_size()):
            self._read_some = False
            span = self.house.limits.stall_seconds
            self._reading = self.loop.call_later(span, self._check_reader, left, self._answers)

    def _check_reader(self, before: int, answers: int) -> None:
        self._reading = None
        left = self.transport.get_write_buffer_size()
        least = min(before, int(MIN_BYTES_PER_SECOND * self.house.limits.stall_seconds))
        # Where another answer was given or the buffer had drained, what is left belongs to something newer.
        if left and before - left < least and not self._read_some and answers == self._answers:
            self.transport.abort()
        else:
            self._watch_reader()

    def _stop_reading(self) -> None:
        self._count_unread(0)
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # closing would wait for a reader
        else:
            super().timeout_keep_alive_handler()  # pyright: ignore[reportAttributeAccessIssue]

    # --- refusals ---------------------------------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """uvicorn calls this for what its parser does not take."""
        self.refuse(not_http())

    def refuse(self, error: ServiceError) -> None:
        """Answer with this error and close. A request that is being answered gets its answer first, and no other after."""
        if self.transport.is_closing():
            return
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if getattr(self, "pipeline", None):
                self.transport.abort()
                return
            if cycle.response_started or not cycle.more_body:
                cycle.keep_alive = False
                self.flow.pause_reading()
                return
            cycle.disconnected = True
            cycle.message_event.set()
        self.house.refused(error)
        self.transport.write(response_bytes(error, self.server_state.default_headers))
        self.transport.close()
        self._watch_reader()

    def _unsupported_upgrade_warning(self) -> None:
        """There are no websockets here; a line in the log for each who asks for one would be a way to fill it."""
