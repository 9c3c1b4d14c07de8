"""Whatever path into a package the pages and examples name is there."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").rglob("*.py"))]
PATHS = sorted(
    {path for page in PAGES for path in re.findall(r"\bgrpo_(?:training|numerics)(?:\.\w+)+", page.read_text())}
)
FOREIGN = {"grpo_training.trl": "trl", "grpo_training.axolotl": "axolotl"}


@pytest.mark.parametrize("path", PATHS)
def test_a_path_that_the_pages_name_is_there(path: str) -> None:
    needed = next((package for door, package in FOREIGN.items() if path.startswith(door)), None)
    if needed and find_spec(needed) is None:
        pytest.skip(f"needs {needed}")
    module, _, name = path.rpartition(".")
    assert hasattr(import_module(module), name) or find_spec(path)


def test_the_parts_of_the_loss_can_be_had_where_the_pages_say() -> None:
    losses = import_module("grpo_training.losses")
    for module in ("advantages", "regularizers"):
        public = import_module(f"grpo_training.{module}")
        assert all(getattr(public, name) is getattr(losses, name) for name in public.__all__)
