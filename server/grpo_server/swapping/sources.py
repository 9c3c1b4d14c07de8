"""From where a swap may take a model: what the operator allowed, links resolved, before anything is read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from grpo_client.models.demo import DEMO, DemoModelMissing, ModelSource, locate
from grpo_client.models.files import UnusableModel

from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.swapping.uploaded import is_upload
from grpo_server.uploading.area import UploadArea

# As the hub names models: one word, or an owner and one.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True, slots=True)
class Allowed:
    """root: only directories below it; None: any. hub: ids of the hub as well. uploads: what came over HTTP, as `upload:ID`."""

    root: Path | None
    hub: bool
    uploads: UploadArea | None = None

    def check(self, model: str) -> ModelSource | None:
        """Where the files of `model` are; None: on the hub. Raises ServiceError: 403 for what is not allowed, 422 for what
        is not there."""
        if is_upload(model):
            if self.uploads is None:
                raise self._forbidden("this server takes no uploads (--upload-dir)")
            return ModelSource(str(self.uploads.whole(model)))
        try:
            source = locate(model)
        except (UnusableModel, DemoModelMissing) as error:
            raise unavailable(str(error)) from error
        if model == DEMO:
            return source
        path = Path(source.path)
        if path.exists():
            if self.root is not None and not path.resolve().is_relative_to(self.root.resolve()):
                raise self._forbidden(f"{model} is not below the directory that models may be taken from (--swap-root)")
            return source
        if not _HUB_ID.fullmatch(model):
            raise unavailable(f"there is no directory {model}")
        if not self.hub:
            raise self._forbidden(
                f"there is no directory {model} here, and models may not be taken from the hub (--swap-hub)"
            )
        return None

    def root_of(self, model: str, source: ModelSource) -> Path | None:
        """The directory out of which none of its files may lead."""
        return Path(source.path) if is_upload(model) else self.root

    def _forbidden(self, why: str) -> ServiceError:
        return ServiceError(ErrorCode.SOURCE_FORBIDDEN, why, param="model")


def no_room(why: str) -> ServiceError:
    """507: its files, or what a restart must know, cannot be stored."""
    return ServiceError(
        ErrorCode.INSUFFICIENT_STORAGE,
        f"the disk is full ({why}): free some of it, below --state-dir or in the hub's cache, and ask again",
    )


def unavailable(why: str) -> ServiceError:
    """422: it cannot be hosted."""
    return ServiceError(ErrorCode.MODEL_UNAVAILABLE, f"the model cannot be used: {why}", param="model")
