"""What is about to be published holds what it should and nothing else.

    python -m tools.check_dist dist       status 1, with every fault, if there is one

The wheel has every module of the four packages, their markers of types, the licence and the commands; its description has no
link that leads nowhere on a package index. The sdist has what the wheel is built from.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
HOMES = [Path(home) for home in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]
BESIDE = {"CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml", ".gitignore"}  # of the sdist


def tracked() -> set[str]:
    """Files of the packages that git knows, below the root of the repository."""
    listed = subprocess.run(["git", "ls-files", *map(str, HOMES)], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(listed.stdout.split())


def wheel_faults(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = f"{wheel.name.rsplit('-py3', 1)[0]}.dist-info"
        metadata = message_from_bytes(archive.read(f"{info}/METADATA"))
        commands = archive.read(f"{info}/entry_points.txt").decode()
    wanted = {
        str(Path(name).relative_to(home.parent))
        for home in HOMES
        for name in tracked()
        if Path(name).is_relative_to(home)
    }
    found = compared(wheel.name, {name for name in names if not name.startswith(info)}, wanted)
    if f"{info}/licenses/LICENSE" not in names:
        found.append(f"{wheel.name}: no LICENSE")
    found += [
        f"{wheel.name}: no command {name}" for name in PROJECT["project"]["scripts"] if f"{name} = " not in commands
    ]
    description = str(metadata.get_payload())
    relative = re.findall(r"\]\((?![a-z]+:|#)[^)]*\)", description)
    found += [f"{wheel.name}: the description links {link[1:]}" for link in relative]
    if len(description) < 1000:
        found.append(f"{wheel.name}: no description")
    return found


def sdist_faults(sdist: Path) -> list[str]:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    return compared(sdist.name, names, tracked() | BESIDE)


def compared(archive: str, names: set[str], wanted: set[str]) -> list[str]:
    missing = [f"{archive}: lacks {name}" for name in sorted(wanted - names)]
    return missing + [f"{archive}: has {name}, which nobody needs" for name in sorted(names - wanted)]


def faults(folder: Path) -> list[str]:
    """Of the one wheel and the one sdist in folder."""
    wheels, sdists = sorted(folder.glob("*.whl")), sorted(folder.glob("*.tar.gz"))
    if (len(wheels), len(sdists)) != (1, 1):
        return [f"{folder}: {len(wheels)} wheels and {len(sdists)} sdists where there should be one of each"]
    return wheel_faults(wheels[0]) + sdist_faults(sdists[0])


def main(argv: list[str]) -> int:
    found = faults(Path(argv[0]))
    for fault in found:
        sys.stderr.write(f"{fault}\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
