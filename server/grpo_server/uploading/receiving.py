"""A piece of a file, from the network to the disk: never more than STEP_BYTES of it in memory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from grpo_client.content_digest import ContentDigest

from grpo_server.durable import is_full
from grpo_server.errors import DigestMismatch, ErrorCode, ServiceError
from grpo_server.uploading.area import UploadArea, no_room
from grpo_server.uploading.manifest import FileStatus, Manifest
from grpo_server.uploading.upload import Upload

T = TypeVar("T")

STEP_BYTES = 2**20
# For writing and hashing; so many uploads go on at once without waiting for each other.
THREADS = 4


class Receiving:
    """Belongs to the event loop; what touches the disk runs in threads of its own."""

    def __init__(self, area: UploadArea) -> None:
        self.area = area
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="upload")
        self._writing: set[tuple[str, str]] = set()

    async def create(self, manifest: Manifest) -> tuple[Upload, bool]:
        """See `UploadArea.create`."""
        return await self._in_thread(lambda: self.area.create(manifest))

    async def append(
        self,
        upload: Upload,
        name: str,
        offset: int,
        length: int | None,
        pieces: AsyncIterable[bytes],
        digest: str | None = None,
    ) -> FileStatus:
        """Write what comes behind the `offset` bytes that are there; hash the file when that was its end. length: of the
        piece, where it was announced. digest: its Content-Digest, without whose bytes the file is left as it was.

        Raises ServiceError: 400 for another digest, 404, 409 when the file has another offset or another writer, 413
        beyond its size, 422 for a wrong hash, 507 when the disk is full. Bytes that came before a failure are kept.
        """
        size = upload.manifest.entry(name).size
        with self._sole_writer(upload, name):
            there = await self._in_thread(lambda: upload.status_of(name))
            if offset != there.offset:
                raise WrongOffset(name, offset, there.offset)
            if offset + (length or 0) > size:
                raise _too_long(name, size)
            if there.complete:
                return there
            await self._write(upload, name, size - offset if length is None else length, pieces, digest)
            return await self._in_thread(lambda: _finished(upload, name))

    async def _write(
        self, upload: Upload, name: str, room: int, pieces: AsyncIterable[bytes], told: str | None
    ) -> None:
        digest = ContentDigest()

        def write(data: bytearray) -> None:
            digest.add(data)
            _write_all(file, data)

        with _a_full_disk_named(name):
            file = await self._in_thread(lambda: upload.open_part(name))
            before = os.fstat(file).st_size
            waiting = bytearray()
            try:
                async for piece in pieces:
                    room -= len(piece)
                    if room < 0:
                        raise _too_long(name, upload.manifest.entry(name).size)
                    waiting += piece
                    if len(waiting) >= STEP_BYTES:
                        taken, waiting = waiting, bytearray()
                        await self._in_thread(lambda taken=taken: write(taken))
                taken, waiting = waiting, bytearray()
                await self._in_thread(lambda: write(taken))
                if not digest.fits(told):
                    await self._in_thread(lambda: os.ftruncate(file, before))
                    raise DigestMismatch
            finally:
                await self._in_thread(lambda: _close(file, waiting))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Whoever is cancelled meanwhile waits until it is done: no file is closed under a thread that writes to it."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise

    @contextmanager
    def _sole_writer(self, upload: Upload, name: str) -> Iterator[None]:
        key = (upload.id, name)
        if key in self._writing:
            raise ServiceError(
                ErrorCode.UPLOAD_BUSY,
                f"{name} is being written by another request; ask for its offset when that is over",
                retry_after=1.0,
            )
        self._writing.add(key)
        self.area.hold(upload.id)
        try:
            yield
        finally:
            self.area.let_go(upload.id)
            self._writing.remove(key)

    def close(self) -> None:
        """Nothing more is written."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self.area.close()


class WrongOffset(ServiceError):
    """A piece does not begin where the file ends. offset: where it does."""

    def __init__(self, name: str, given: int, offset: int) -> None:
        super().__init__(
            ErrorCode.UPLOAD_OFFSET,
            f"{name} has {offset} bytes and the piece begins at {given}; go on at {offset}",
            param=name,
        )
        self.offset = offset

    def headers(self) -> dict[str, str]:
        return {**super().headers(), "Upload-Offset": str(self.offset)}


def _finished(upload: Upload, name: str) -> FileStatus:
    status = upload.status_of(name)
    if status.offset == status.size and not status.complete:
        upload.finish(name)
        status = upload.status_of(name)
    return status


def _write_all(file: int, data: bytearray) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _close(file: int, waiting: bytearray) -> None:
    try:
        _write_all(file, waiting)
        os.fsync(file)
    finally:
        os.close(file)


def _too_long(name: str, size: int) -> ServiceError:
    return ServiceError(
        ErrorCode.BODY_TOO_LARGE,
        f"more bytes came for {name} than were announced, or than the {size} of its manifest",
        param=name,
    )


@contextmanager
def _a_full_disk_named(name: str) -> Iterator[None]:
    """What is on disk stays, and the upload goes on when there is room again."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise no_room(f"{name}: the disk is full") from error
