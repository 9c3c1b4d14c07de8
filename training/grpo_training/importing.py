"""`module:name` in a configuration, as the object that it names."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from grpo_training.config import ConfigError


def imported(name: str, *, field: str) -> Any:
    """The module is importable, or a file of the working directory. field: of the configuration, for the error.

    Raises ConfigError.
    """
    module_name, _, path = name.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:  # ValueError: an empty module name
        raise ConfigError(f"{field}: cannot import {name}: {error}") from error
    return found
