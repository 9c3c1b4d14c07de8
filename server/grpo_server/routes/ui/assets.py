"""The files of the inspector, as they go out: read once, compressed once, each with a tag of its content."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".LICENSE": "text/plain; charset=utf-8",
}
PAGE = "index.html"


@dataclass(frozen=True, slots=True)
class Asset:
    """content: as it is; packed: gzip of it; etag: of the content."""

    content: bytes
    packed: bytes
    etag: str
    media_type: str

    @classmethod
    def of(cls, content: bytes, media_type: str) -> Asset:
        tag = hashlib.sha256(content).hexdigest()[:32]
        return cls(content, gzip.compress(content, 9, mtime=0), f'"{tag}"', media_type)


@cache
def assets() -> Mapping[str, Asset]:
    """Every file that a browser may ask for, by its path below the folder."""
    return {name: Asset.of(file.read_bytes(), media) for name, file, media in _found(files("grpo_server") / "ui", "")}


def _found(folder: Traversable, prefix: str) -> Iterator[tuple[str, Traversable, str]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _found(entry, f"{prefix}{entry.name}/")
            continue
        ending = entry.name[entry.name.rfind(".") :]
        if ending in MEDIA_TYPES:
            yield f"{prefix}{entry.name}", entry, MEDIA_TYPES[ending]
