"""One upload on disk.

manifest.json        what was promised
parts/NAME           the bytes that came so far; how many these are is the offset
files/NAME           all of them, and their hash is the promised one: only this directory is ever loaded
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from grpo_client.models.uploadable import UPLOAD

from grpo_server.durable import sync
from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.uploading.manifest import FileStatus, Manifest, UploadStatus

MANIFEST, PARTS, FILES = "manifest.json", "parts", "files"


class Upload:
    """Its state is what is on disk, and nothing else. May be asked on any thread; each file has one writer at a time."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def files(self) -> Path:
        """The directory to load, once the upload is complete."""
        return self.path / FILES

    def status(self) -> UploadStatus:
        files = [self.status_of(file.name) for file in self.manifest.files]
        return UploadStatus(
            id=self.id, model=UPLOAD + self.id, complete=all(file.complete for file in files), files=files
        )

    def status_of(self, name: str) -> FileStatus:
        """Raises ServiceError (404) for a file that was not promised."""
        file = self.manifest.entry(name)
        complete = (self.files / name).is_file()
        return FileStatus(
            name=name,
            size=file.size,
            offset=file.size if complete else _size(self.path / PARTS / name),
            complete=complete,
        )

    @property
    def bytes_to_come(self) -> int:
        return sum(file.size - file.offset for file in self.status().files)

    @property
    def touched(self) -> float:
        """When bytes came last, in seconds of the system's clock."""
        seen = [self.path / MANIFEST, self.path / PARTS, self.files]
        seen += [self.path / PARTS / file.name for file in self.manifest.files]
        return max(_changed(path) for path in seen)

    def open_part(self, name: str) -> int:
        """A descriptor that appends. Raises OSError."""
        return os.open(self.path / PARTS / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)

    def finish(self, name: str) -> None:
        """Hash a file whose bytes have all come. Raises ServiceError (422) and removes it, if it is not what was promised."""
        part, promised = self.path / PARTS / name, self.manifest.entry(name).sha256
        with part.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != promised:
            part.unlink()
            raise ServiceError(
                ErrorCode.HASH_MISMATCH,
                f"{name} arrived with the SHA-256 {found} and the manifest says {promised}: it was removed; send it again "
                "from offset 0",
                param=name,
            )
        os.replace(part, self.files / name)
        sync(self.files)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
