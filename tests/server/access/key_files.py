"""Keys files for tests: named keys of each kind, written whole."""

from __future__ import annotations

import hashlib
from pathlib import Path

SCORE, ADMIN, METRICS = "score-key-0123456789", "admin-key-0123456789", "metrics-key-0123456789"


def sha256(key: str) -> str:
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def entry(name: str, key: str, scopes: str = "score", **limits: object) -> str:
    lines = [f"  - name: {name}", f"    hash: {sha256(key)}", f"    scopes: [{scopes}]"]
    return "\n".join([*lines, *(f"    {field}: {value}" for field, value in limits.items())]) + "\n"


def write(path: Path, *entries: str) -> Path:
    """In the place of what is there, as a deployment would."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text("keys:\n" + "".join(entries))
    fresh.replace(path)
    return path


def of_each_kind(directory: Path) -> Path:
    return write(
        directory / "keys.yaml",
        entry("scorer", SCORE),
        entry("swapper", ADMIN, "admin"),
        entry("scraper", METRICS, "metrics"),
    )
