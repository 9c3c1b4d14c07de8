"""Answers as they go out. A large one goes chunk by chunk, so that no step of sending it is long, and is in the books
meanwhile: its memory counts against what all requests may hold until its reader has taken it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from fastapi import Request, Response
from grpo_client.content_digest import HEADER, header_of
from starlette.types import Receive, Scope, Send

from grpo_server.middleware.bodies.budget import ByteBudget

# Bytes that are handed to a socket at once.
CHUNK = 2**18
# Bytes of their own, or a view into an array.
Chunk = bytes | memoryview


class ChunkwiseResponse(Response):
    """chunks: the content; budget: where their bytes are counted until they are sent."""

    def __init__(
        self, chunks: Sequence[Chunk], budget: ByteBudget, media_type: str, headers: Mapping[str, str]
    ) -> None:
        super().__init__(media_type=media_type, headers=headers)
        self.headers["Content-Length"] = str(sum(map(len, chunks)))
        self._chunks = list(reversed(chunks))
        self._budget = budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        held = sum(map(len, self._chunks))  # views keep their whole array: those are released at the end
        self._budget.hold(held)
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            while self._chunks:
                chunk = self._chunks.pop()
                await send({"type": "http.response.body", "body": chunk, "more_body": bool(self._chunks)})
                if isinstance(chunk, bytes):
                    self._budget.release(len(chunk))
                    held -= len(chunk)
        finally:
            self._budget.release(held)


async def response_of(
    request: Request, chunks: Sequence[Chunk], media_type: str, headers: Mapping[str, str]
) -> Response:
    """An answer of these chunks (see `gathered`)."""
    if len(chunks) > 1:
        digest = await request.app.state.service.in_codec(header_of, chunks)
        return ChunkwiseResponse(chunks, request.app.state.budget, media_type, {**headers, HEADER: digest})
    return Response(b"".join(chunks), media_type=media_type, headers=dict(headers))


def gathered(small: Iterable[Chunk], size: int = CHUNK) -> list[Chunk]:
    """The same bytes in chunks of about this size, none of them empty. What is as large already is not copied."""
    return list(_gathered(small, size))


def _gathered(small: Iterable[Chunk], size: int) -> Iterator[Chunk]:
    batch: list[Chunk] = []
    nbytes = 0
    for chunk in small:
        if len(chunk) >= size:
            if nbytes:
                yield b"".join(batch)
                batch, nbytes = [], 0
            yield chunk
            continue
        batch.append(chunk)
        nbytes += len(chunk)
        if nbytes >= size:
            yield b"".join(batch)
            batch, nbytes = [], 0
    if nbytes:
        yield b"".join(batch)
