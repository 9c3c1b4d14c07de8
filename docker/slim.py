"""Take out of an environment what no server and no trainer runs: python slim.py SITE_PACKAGES. Prints the megabytes.

In the step of the image that installs it, since a later one cannot make its layer smaller.
"""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

# torch looks for this one when it is imported.
KEPT = "torch_shm_manager"


def removable(site: Path) -> Iterator[Path]:
    """torch's own test programs; its headers where it has no CUDA, whose compiled layers need them; tests of what it needs."""
    yield site / "torch" / "test"
    yield from (program for program in (site / "torch" / "bin").glob("*") if program.name != KEPT)
    if not any((site / "torch" / "lib").glob("libtorch_cuda*")):
        yield site / "torch" / "include"
    for package in ("sympy", "networkx"):
        yield from (site / package).rglob("tests")


def remove(site: Path) -> int:
    """Returns the bytes that came free."""
    freed = 0
    for path in list(removable(site)):
        if path.is_dir():
            freed += sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            shutil.rmtree(path)
        elif path.exists():
            freed += path.stat().st_size
            path.unlink()
    return freed


if __name__ == "__main__":
    sys.stdout.write(f"{remove(Path(sys.argv[1])) / 1e6:.0f} MB taken out\n")
