"""What a client says that it will send, and how far that is."""

from __future__ import annotations

import hashlib

from grpo_client.models.uploadable import BESIDE, CONFIG, WEIGHTS, is_uploadable
from pydantic import BaseModel, ConfigDict, Field

from grpo_server.errors import ErrorCode, ServiceError

MOST_FILES = 1000


class FileEntry(BaseModel):
    """One file of a model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="A plain name: config.json, a tokenizer's file, *.safetensors or its index.")
    size: int = Field(strict=True, ge=0, description="Bytes.")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="Of all of its bytes, as 64 lower-case hex digits.")


class Manifest(BaseModel):
    """All files of a model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    files: tuple[FileEntry, ...] = Field(min_length=1, max_length=MOST_FILES)

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def id(self) -> str:
        """The same files have the same id, so that whoever begins once more goes on."""
        lines = sorted(f"{file.sha256} {file.size} {file.name}\n" for file in self.files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()[:32]

    def entry(self, name: str) -> FileEntry:
        """Raises ServiceError (404) for a file that is not in it."""
        for file in self.files:
            if file.name == name:
                return file
        raise ServiceError(ErrorCode.NOT_FOUND, f"this upload has no file {name[:100]!r}; its manifest names the files")

    def check(self, max_bytes: int) -> None:
        """Raises ServiceError: 422 for names that are not taken or no model, 413 for more than max_bytes."""
        seen: set[str] = set()
        for n, file in enumerate(self.files):
            if not is_uploadable(file.name):
                raise _refused(
                    f"{file.name[:100]!r} is not taken: plain names only, of *{WEIGHTS} files or one of "
                    f"{', '.join(sorted(BESIDE))}",
                    f"files[{n}].name",
                )
            if file.name.casefold() in seen:
                raise _refused(f"{file.name!r} is named twice", f"files[{n}].name")
            seen.add(file.name.casefold())
        if CONFIG not in seen or not any(name.endswith(WEIGHTS) for name in seen):
            raise _refused(f"a model has a {CONFIG} and at least one *{WEIGHTS} file; name all of its files", "files")
        if self.total_bytes > max_bytes:
            raise ServiceError(
                ErrorCode.BODY_TOO_LARGE,
                f"the upload has {self.total_bytes} bytes and the limit is {max_bytes} (--max-upload-bytes)",
                param="files",
            )


class FileStatus(BaseModel):
    """offset: bytes that are on disk, where the next piece begins. complete: all of them, and their hash is the right one."""

    name: str
    size: int
    offset: int
    complete: bool


class UploadStatus(BaseModel):
    """model: what POST /admin/reference takes, once the upload is complete."""

    id: str
    model: str
    complete: bool
    files: list[FileStatus]


def _refused(why: str, param: str) -> ServiceError:
    return ServiceError(ErrorCode.INVALID_VALUE, why, param=param)
