"""A fake engine whose reference is what stands in a file `weights` of its directory, so that swaps go through real files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from grpo_server.engine.contract import Addition, Change, OnStage
from server_fakes import FakeEngine


class FileEngine(FakeEngine):
    """Named after what it read; a mix is named after both."""

    @property
    def reads_files(self) -> bool:
        return True

    def beside(self, change: Change, on_stage: OnStage) -> FakeEngine:
        read = (Path(change.source) / "weights").read_text()
        named = Change(read if change.decay is None else f"{self._name}+{read}", version=change.version)
        return super().beside(named, on_stage)

    def adapt(self, addition: Addition, on_stage: OnStage) -> FakeEngine:
        read = (Path(addition.source) / "weights").read_text()
        return super().adapt(replace(addition, source=read), on_stage)

    def add(self, addition: Addition, on_stage: OnStage) -> FakeEngine:
        read = (Path(addition.source) / "weights").read_text()
        return super().add(replace(addition, source=read), on_stage)

    def save(self, directory: Path) -> None:
        (directory / "weights").write_text(self._name)
        (directory / "config.json").write_text("{}")


def checkpoint(path: Path, weights: str) -> Path:
    path.mkdir()
    (path / "weights").write_text(weights)
    (path / "config.json").write_text("{}")
    return path
