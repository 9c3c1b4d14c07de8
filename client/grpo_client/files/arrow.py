"""pyarrow, which nobody needs who neither reads nor writes tables: brought in when it is asked for."""

from __future__ import annotations

import importlib
from typing import Any


def pyarrow(submodule: str = "") -> Any:
    """pyarrow, or `pyarrow.submodule`. Raises ValueError, which says what to install, where it is missing."""
    try:
        return importlib.import_module(f"pyarrow.{submodule}" if submodule else "pyarrow")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "pyarrow":
            raise
        raise ValueError("parquet and arrow files need pyarrow; type: pip install pyarrow") from error
