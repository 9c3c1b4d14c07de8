"""Small models to upload, and a fake engine that is named after the bytes of the weights that it read."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from grpo_server.engine.contract import Change, OnStage
from server_fakes import FakeEngine

ADMIN = {"Authorization": "Bearer root"}
WEIGHTS = "model.safetensors"


class WeightsEngine(FakeEngine):
    """A mix is named after both."""

    @property
    def reads_files(self) -> bool:
        return True

    def beside(self, change: Change, on_stage: OnStage) -> FakeEngine:
        read = (Path(change.source) / WEIGHTS).read_text()
        return super().beside(Change(read if change.decay is None else f"{self._name}+{read}"), on_stage)

    def save(self, directory: Path) -> None:
        (directory / WEIGHTS).write_text(self._name)


def model(weights: str = "second") -> dict[str, bytes]:
    """Its files by name."""
    return {"config.json": b"{}", WEIGHTS: weights.encode()}


def manifest(files: dict[str, bytes]) -> dict[str, Any]:
    return {
        "files": [
            {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in files.items()
        ]
    }
