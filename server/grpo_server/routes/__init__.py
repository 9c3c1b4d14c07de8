"""HTTP in and out. A module here is a dialect or an operator's corner: it translates, and leaves the work to `Scoring`.

To add one, add a file with a module-level `router: APIRouter`; it is found by itself.
"""

from __future__ import annotations

import importlib
import pkgutil

from fastapi import APIRouter


def discover() -> list[APIRouter]:
    """The `router` of every module in this package, in order of their names; names with _ in front are helpers."""
    names = sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    return [importlib.import_module(f"{__name__}.{name}").router for name in names]
