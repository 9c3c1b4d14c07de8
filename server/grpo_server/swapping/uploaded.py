"""An upload as the source of a swap: it stays while it is read, and goes when nobody hosts it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from grpo_client.models.uploadable import UPLOAD

from grpo_server.uploading.area import UploadArea


def is_upload(model: str) -> bool:
    """Whether `upload:ID` is meant."""
    return model.startswith(UPLOAD)


@contextmanager
def held(uploads: UploadArea | None, model: str) -> Iterator[None]:
    """Nobody removes it meanwhile, if it is an upload."""
    if uploads is None or not is_upload(model):
        yield
        return
    uploads.hold(id := model.removeprefix(UPLOAD))
    try:
        yield
    finally:
        uploads.let_go(id)


def settle(uploads: UploadArea | None, model: str, *, mixed: bool) -> None:
    """The reference was replaced. A hosted one is a copy, in memory and in the state directory: a restart needs no upload."""
    if uploads is not None:
        uploads.mixed_in(model) if mixed else uploads.host(model)
