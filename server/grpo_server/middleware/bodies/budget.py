"""The memory that clients hold before their requests are accepted: bodies as they arrive, answers that nobody reads.

Accepted requests are in the books of `scheduler.admission`; both count against the same limit here, so that what is still
arriving gives way to what is under way. One event loop; no HTTP.
"""

from __future__ import annotations

from collections.abc import Callable

from grpo_server.errors import ErrorCode, ServiceError

# An unfinished body ends in seconds, be it accepted or cut off.
RETRY_AFTER_SECONDS = 1.0


def _none_yet() -> int:
    return 0


class ByteBudget:
    """held: bytes of bodies and unread answers."""

    def __init__(self, max_bytes: int, accepted: Callable[[], int] = _none_yet) -> None:
        """accepted: bytes of the requests that were accepted, asked at every charge."""
        self._max_bytes = max_bytes
        self._accepted = accepted
        self.held = 0

    def charge(self, nbytes: int, so_far: int = 0) -> None:
        """Hold so many bytes more for a body that has so_far already.

        Raises ServiceError: 413 when that body alone is over the limit, 429 with Retry-After when there is no room now.
        """
        if so_far + nbytes > self._max_bytes:
            raise ServiceError(
                ErrorCode.REQUEST_TOO_LARGE,
                f"the body takes more than the {self._max_bytes} bytes that all requests may hold together; send fewer "
                "groups a request, or start the server with a larger --max-queue-bytes",
                param="body",
            )
        if self.held + self._accepted() + nbytes > self._max_bytes:
            raise ServiceError(
                ErrorCode.QUEUE_FULL,
                f"requests under way hold the {self._max_bytes} bytes that they may (--max-queue-bytes); come back in "
                f"{RETRY_AFTER_SECONDS:g} s, as Retry-After says",
                retry_after=RETRY_AFTER_SECONDS,
            )
        self.held += nbytes

    def hold(self, nbytes: int) -> None:
        """Count bytes that are there already and cannot be refused."""
        self.held += nbytes

    def release(self, nbytes: int) -> None:
        self.held -= nbytes
        assert self.held >= 0
