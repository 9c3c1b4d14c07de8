"""Sizes as people write them."""

from __future__ import annotations

from typing import Annotated

from grpo_client.sizes import read_size, read_size_or_auto
from pydantic import BeforeValidator

MIB = 2**20
# A number, or 256MiB, 1GB, 64k.
Size = Annotated[int, BeforeValidator(read_size)]
# The same, or "auto", which is None.
AutoSize = Annotated[int | None, BeforeValidator(read_size_or_auto)]
