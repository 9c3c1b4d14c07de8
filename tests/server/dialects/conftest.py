"""A reference that is its own oracle, for the dialects."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from bigram_engine import BigramEngine


@pytest.fixture
def engine() -> BigramEngine:
    return BigramEngine()
