"""What a server that takes uploads does, in as few lines as go."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any


class FakeUploads:
    """One upload at a time; path: where its files are."""

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}

    def begin(self, manifest: dict[str, Any]) -> dict[str, Any]:
        self.path = Path(tempfile.mkdtemp())
        self.sizes = {file["name"]: file["size"] for file in manifest["files"]}
        return {"id": "1", "model": "upload:1", "files": [self.place(name) for name in self.sizes]}

    def place(self, name: str) -> dict[str, Any]:
        path = self.path / name
        there = path.stat().st_size if path.exists() else 0
        return {"name": name, "offset": there, "complete": path.exists() and there == self.sizes[name]}

    def append(self, name: str, offset: int, data: bytes) -> dict[str, Any]:
        with (self.path / name).open("ab") as file:
            assert file.tell() == offset
            file.write(data)
        return self.place(name)
