"""The libraries of the inspector's pages, as they stand in the tree: fetched by npm, checked, and written with their licences.

    python -m tools.vendor        what `make vendor` runs; needs npm, and changes nothing when the tree is as pinned

A package is one exact version whose archive has the SHA-256 given here. What is taken from it, and with which SHA-256 it lies
in the tree, stands in the manifest beside the files; a test holds them against it. Two things are rewritten, because the pages
have no build: a bare import becomes the path of its file, and uPlot's minified script exports itself, which the ES module of
the same package does at three times the size.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "server/grpo_server/ui/vendor"
TESTS = ROOT / "tests/browser/vendor"
MANIFEST = "manifest.json"

Rewrite = Callable[[bytes], bytes]


def _as_it_is(text: bytes) -> bytes:
    return text


def _local_preact(text: bytes) -> bytes:
    return _replaced(text, b'from"preact"', b'from"./preact.mjs"')


def _exporting(text: bytes) -> bytes:
    return text.rstrip() + b"\nexport default uPlot;\n"


def _replaced(text: bytes, old: bytes, new: bytes) -> bytes:
    if text.count(old) != 1:
        raise ValueError(f"{old.decode()} stands {text.count(old)} times in the file where it should stand once")
    return text.replace(old, new)


@dataclass(frozen=True, slots=True)
class Package:
    """spec: name@version. sha256: of the archive. files: name in the tree -> (path in the package, what is rewritten)."""

    spec: str
    licence: str
    sha256: str
    files: Mapping[str, tuple[str, Rewrite]]
    home: Path = PAGES


PACKAGES = (
    Package(
        "preact@11.2.0",
        "MIT",
        "3c4456766bd32b6b534d52bf4e9c2a29b33e7eedf6e96ed479300ba1a7888ebf",
        {
            "preact.mjs": ("dist/preact.mjs", _as_it_is),
            "hooks.mjs": ("hooks/dist/hooks.mjs", _local_preact),
            "preact.LICENSE": ("LICENSE", _as_it_is),
        },
    ),
    Package(
        "htm@3.1.1",
        "Apache-2.0",
        "2425b9bee11409177bcabc7f32e319926fc6690c1701c0b257c88bdff2d5ba90",
        {"htm.mjs": ("dist/htm.mjs", _as_it_is), "htm.LICENSE": ("LICENSE", _as_it_is)},
    ),
    Package(
        "uplot@1.6.32",
        "MIT",
        "4b8a8191e425658e3ea8c8c1314b0fc679c861ee3a1af2b20c7b16ba50b5133d",
        {
            "uplot.mjs": ("dist/uPlot.iife.min.js", _exporting),
            "uplot.css": ("dist/uPlot.min.css", _as_it_is),
            "uplot.LICENSE": ("LICENSE", _as_it_is),
        },
    ),
    Package(
        "axe-core@4.14.1",
        "MPL-2.0",
        "e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745",
        {"axe.min.js": ("axe.min.js", _as_it_is), "axe.LICENSE": ("LICENSE", _as_it_is)},
        home=TESTS,
    ),
)


def unpacked(package: Package, archive: Path) -> dict[str, bytes]:
    """The files as they go into the tree. Raises ValueError when the archive is not the one that is pinned."""
    if (found := hashlib.sha256(archive.read_bytes()).hexdigest()) != package.sha256:
        raise ValueError(f"{package.spec} has the SHA-256 {found}; pinned is {package.sha256}")
    with tarfile.open(archive) as opened:
        return {name: change(_read(opened, path)) for name, (path, change) in package.files.items()}


def _read(opened: tarfile.TarFile, path: str) -> bytes:
    file = opened.extractfile(f"package/{path}")
    if file is None:
        raise ValueError(f"{path} is no file of the package")
    return file.read()


def fetched(package: Package, folder: Path) -> Path:
    """The package's archive, by npm."""
    said = subprocess.run(
        ["npm", "pack", "--silent", package.spec], cwd=folder, check=True, capture_output=True, text=True
    )
    return folder / said.stdout.split()[-1]


def main() -> int:
    manifests: dict[Path, list[dict[str, object]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for package in PACKAGES:
            files = unpacked(package, fetched(package, Path(folder)))
            package.home.mkdir(parents=True, exist_ok=True)
            for name, content in files.items():
                (package.home / name).write_bytes(content)
            hashes = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
            manifests.setdefault(package.home, []).append(
                {"package": package.spec, "licence": package.licence, "archive": package.sha256, "files": hashes}
            )
    for home, entries in manifests.items():
        (home / MANIFEST).write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
