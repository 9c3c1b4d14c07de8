"""What a server finds of its uploads when it starts."""

from __future__ import annotations

from grpo_server.config import ServerConfig
from grpo_server.uploading.area import UploadArea
from grpo_server.uploading.receiving import Receiving


def open_uploads(config: ServerConfig, hosted: str | None) -> Receiving | None:
    """None where none are taken. hosted: the model that comes up again. Raises ValueError for a directory that is not to be
    had."""
    if config.upload_dir is None:
        return None
    area = UploadArea(config.upload_dir, config.max_upload_bytes, config.upload_max_age)
    area.host(hosted)
    return Receiving(area)
