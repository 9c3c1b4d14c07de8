"""Answers as they go out. A large one goes piece by piece, so that no step of sending it is long, and is in the books
meanwhile: its memory counts against what all requests may hold until its reader has taken it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from grpo_server.middleware.bodies.budget import ByteBudget

# Bytes that are handed to a socket at once.
PIECE = 2**18


class PiecewiseResponse(Response):
    """pieces: the content; budget: where their bytes are counted until they are sent."""

    def __init__(
        self, pieces: Sequence[bytes], budget: ByteBudget, media_type: str, headers: Mapping[str, str]
    ) -> None:
        super().__init__(media_type=media_type, headers=headers)
        self.headers["Content-Length"] = str(sum(map(len, pieces)))
        self._pieces = list(reversed(pieces))
        self._budget = budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        held = sum(map(len, self._pieces))
        self._budget.hold(held)
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            while self._pieces:
                piece = self._pieces.pop()
                await send({"type": "http.response.body", "body": piece, "more_body": bool(self._pieces)})
                self._budget.release(len(piece))
                held -= len(piece)
        finally:
            self._budget.release(held)


def response_of(request: Request, pieces: Sequence[bytes], media_type: str, headers: Mapping[str, str]) -> Response:
    """An answer of these pieces (see `gathered`)."""
    if len(pieces) > 1:
        return PiecewiseResponse(pieces, request.app.state.budget, media_type, headers)
    return Response(b"".join(pieces), media_type=media_type, headers=dict(headers))


def gathered(small: Iterable[bytes], size: int = PIECE) -> list[bytes]:
    """The same bytes in pieces of about this size, none of them empty."""
    return list(_gathered(small, size))


def _gathered(small: Iterable[bytes], size: int) -> Iterator[bytes]:
    batch: list[bytes] = []
    nbytes = 0
    for piece in small:
        batch.append(piece)
        nbytes += len(piece)
        if nbytes >= size:
            yield b"".join(batch)
            batch, nbytes = [], 0
    if nbytes:
        yield b"".join(batch)
