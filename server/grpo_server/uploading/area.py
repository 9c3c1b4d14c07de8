"""The directory in which uploads are: who may begin one, which are used, and when they go."""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from grpo_client.models.uploadable import UPLOAD
from pydantic import ValidationError

from grpo_server.durable import sync
from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.own_directory import lock_directory
from grpo_server.uploading.manifest import Manifest
from grpo_server.uploading.upload import FILES, MANIFEST, PARTS, Upload

logger = logging.getLogger(__name__)

# Begun and not yet named, or named and no longer wanted: removed at the next start.
_NEW, _GONE = ".upload-new-", ".upload-gone-"
_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)


class UploadArea:
    """A directory that belongs to one server at a time. max_bytes: of one upload. max_age: seconds without a byte after which
    one goes that nobody hosts. clock: seconds, as files have them. Raises ValueError when the directory cannot be had."""

    def __init__(self, path: Path, max_bytes: int, max_age: float, clock: Callable[[], float] = time.time) -> None:
        self.path, self._max_bytes, self._max_age, self._clock = path, max_bytes, max_age, clock
        self._lock = lock_directory(path, "upload_dir")
        self._changing = threading.RLock()
        self._held: list[str] = []  # by swaps under way, and by whoever writes
        self._hosted: str | None = None
        self._remove_left_over()
        self.expire()

    def close(self) -> None:
        """Let another server have it."""
        self._lock.close()

    def create(self, manifest: Manifest) -> tuple[Upload, bool]:
        """Begin an upload, or find the one of the same files; whether it is new. Raises ServiceError: 413, 422 for a manifest
        that is not taken, 507 where the disk has no room for all that was promised."""
        manifest.check(self._max_bytes)
        with self._changing:
            self.expire()
            if (found := self._read(self.path / manifest.id)) is not None:
                return found, False
            promised = sum(upload.bytes_to_come for upload in self.all())
            free = shutil.disk_usage(self.path).free
            if promised + manifest.total_bytes > free:
                raise no_room(f"{manifest.total_bytes} bytes do not fit: {free} are free, {promised} of them promised")
            try:
                return self._write(manifest), True
            except OSError as error:
                raise no_room(f"the upload cannot be begun ({error.strerror})") from error

    def all(self) -> list[Upload]:
        """Every upload, by its id."""
        found = [self._read(path) for path in sorted(self.path.iterdir()) if _ID.fullmatch(path.name)]
        return [upload for upload in found if upload is not None]

    def find(self, id: str) -> Upload:
        """Raises ServiceError (404)."""
        upload = self._read(self.path / id) if _ID.fullmatch(id) else None
        if upload is None:
            raise ServiceError(
                ErrorCode.NOT_FOUND,
                f"there is no upload {id[:64]!r} here, or it was removed; begin one with POST /admin/uploads",
            )
        return upload

    def whole(self, model: str) -> Path:
        """The directory of an upload that is complete, of which `model` names the id. Raises ServiceError: 404, 422."""
        upload = self.find(model.removeprefix(UPLOAD))
        for file in upload.status().files:
            if not file.complete:
                raise ServiceError(
                    ErrorCode.MODEL_UNAVAILABLE,
                    f"{model} is not complete: {file.name} has {file.offset} of {file.size} bytes"
                    f"{', not yet hashed' if file.offset == file.size else ''}",
                    param="model",
                )
        return upload.files

    def remove(self, id: str) -> None:
        """Raises ServiceError: 404, 409 while a swap reads it or bytes arrive."""
        with self._changing:
            upload = self.find(id)
            if id in self._held:
                raise ServiceError(
                    ErrorCode.UPLOAD_BUSY, f"upload {id} is being read or written; end that first", retry_after=1.0
                )
            self._drop(upload)

    # --- who uses one ---------------------------------------------------------------------------------------------

    def hold(self, id: str) -> None:
        """It stays until as many `let_go` as `hold` were called."""
        with self._changing:
            self._held.append(id)

    def let_go(self, id: str) -> None:
        with self._changing:
            self._held.remove(id)

    def host(self, model: str | None) -> None:
        """This model is hosted from now on, or, with None, one that is no upload. The upload before it goes."""
        with self._changing:
            before, self._hosted = self._hosted, _id_of(model)
            if before != self._hosted:
                self._drop_if_there(before)

    def mixed_in(self, model: str) -> None:
        """What is hosted now is an average with this model: neither it nor what was hosted before is asked for again."""
        self.host(None)
        self._drop_if_there(_id_of(model))

    def expire(self) -> None:
        """Remove what nobody uses and no byte came for in `max_age` seconds."""
        with self._changing:
            for upload in self.all():
                age = self._clock() - upload.touched
                if age > self._max_age and upload.id not in (*self._held, self._hosted):
                    logger.info("removing upload %s, which nobody has gone on with for %.0f s", upload.id, age)
                    self._drop(upload)

    # --- the directory --------------------------------------------------------------------------------------------

    def _write(self, manifest: Manifest) -> Upload:
        draft = Path(tempfile.mkdtemp(prefix=_NEW, dir=self.path))
        try:
            (draft / PARTS).mkdir()
            (draft / FILES).mkdir()
            (draft / MANIFEST).write_text(manifest.model_dump_json(indent=1))
            sync(draft / MANIFEST)
            os.rename(draft, self.path / manifest.id)
        except OSError:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        sync(self.path)
        return Upload(self.path / manifest.id, manifest)

    def _read(self, path: Path) -> Upload | None:
        try:
            return Upload(path, Manifest.model_validate_json((path / MANIFEST).read_bytes()))
        except (OSError, ValidationError):
            return None

    def _drop_if_there(self, id: str | None) -> None:
        if id is not None and (upload := self._read(self.path / id)) is not None:
            self._drop(upload)

    def _drop(self, upload: Upload) -> None:
        """Out of sight at once; its bytes go in a thread, for many gigabytes take a while."""
        gone = Path(tempfile.mkdtemp(prefix=_GONE, dir=self.path))
        os.rename(upload.path, gone / upload.id)
        threading.Thread(target=shutil.rmtree, args=(gone, True), name="remove an upload").start()

    def _remove_left_over(self) -> None:
        for path in self.path.iterdir():
            unnamed = path.name.startswith((_NEW, _GONE))
            if unnamed or (_ID.fullmatch(path.name) and self._read(path) is None):
                logger.info("removing %s, which an upload left", path)
                shutil.rmtree(path, ignore_errors=True)


def _id_of(model: str | None) -> str | None:
    return model.removeprefix(UPLOAD) if model is not None and model.startswith(UPLOAD) else None


def no_room(why: str) -> ServiceError:
    """507: it cannot be stored."""
    return ServiceError(
        ErrorCode.INSUFFICIENT_STORAGE, f"{why}; free some of the disk of --upload-dir, or drop an upload and go on"
    )
