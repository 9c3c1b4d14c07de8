"""How a reference is replaced, and what survives a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings

from grpo_server.config.sizes import Size


class SwapSettings(BaseSettings):
    """Part of `ServerConfig`."""

    swap_memory: Literal["auto", "beside", "in-place"] = Field(
        "auto",
        description="beside: the next reference is loaded while this one serves. in-place: nothing is served meanwhile. "
        "auto: beside if memory for both is free, else in-place.",
    )
    swap_timeout: float = Field(
        900.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds that a swap may take; then it ends, and the old reference serves on.",
    )
    swap_root: Path | None = Field(
        None,
        description="Directory below which a swap may take models from, links resolved. None: wherever the admin key's "
        "holder says.",
    )
    swap_hub: bool = Field(False, description="With --swap-root: a swap may take models from the hub as well.")
    state_dir: Path | None = Field(
        None,
        description="Directory in which the reference survives a restart: its version, and a copy of what a swap brought. "
        "None: a restart serves --model as version 1.",
    )

    upload_dir: Path | None = Field(
        None, description="Directory for models that arrive over HTTP, in POST /admin/uploads. None: none are taken."
    )
    max_upload_bytes: Size = Field(256 * 2**30, ge=1, description="Largest such model, in bytes; beyond that, 413.")
    upload_max_age: float = Field(
        86_400.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds without a byte after which an upload that nobody hosts is removed.",
    )
