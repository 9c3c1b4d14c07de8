"""Take out of an environment what no server and no trainer runs: python slim.py SITE_PACKAGES. Prints the megabytes.

In the step of the image that installs it, since a later one cannot make its layer smaller. Where binutils' `strip` is at hand,
libraries lose the names of their internal functions, which only a debugger reads: 120 MB.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# torch looks for this one when it is imported.
KEPT = "torch_shm_manager"


def removable(site: Path) -> Iterator[Path]:
    """torch's own test programs; what layers are compiled with, its headers among it, where it has no CUDA; from which files of
    transformers its modules are written; stubs; tests of what is needed."""
    yield site / "torch" / "test"
    yield from (site / "torch" / "lib").glob("lib*_test.so")
    yield from (program for program in (site / "torch" / "bin").glob("*") if program.name != KEPT)
    if not any((site / "torch" / "lib").glob("libtorch_cuda*")):
        yield site / "torch" / "include"
    yield from (site / "transformers" / "models").glob("*/modular_*.py")
    for package in ("sympy", "networkx", "mpmath", "numpy"):
        yield from (site / package).rglob("tests")
    for package in ("torch", "numpy"):
        yield from (site / package).rglob("*.pyi")


def strip(site: Path) -> int:
    """Take the names of internal functions out of libraries; returns the bytes that came free. What the linker needs is kept
    elsewhere in the file. Libraries that a wheel carries for its own (`numpy.libs`) were rearranged once, which `strip` does
    not always survive: they stay. A file that gets no smaller is not touched, or it would come into another layer once more."""
    if shutil.which("strip") is None:
        return 0
    freed = 0
    for path in site.rglob("*.so"):
        if not path.is_file() or any(part.endswith(".libs") for part in path.relative_to(site).parts):
            continue
        stripped = path.with_suffix(".stripped")
        subprocess.run(["strip", "--strip-unneeded", "-o", stripped, path], check=True)
        if (less := path.stat().st_size - stripped.stat().st_size) > 0:
            stripped.replace(path)
            freed += less
        else:
            stripped.unlink()
    return freed


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
    site = Path(sys.argv[1])
    sys.stdout.write(f"{(remove(site) + strip(site)) / 1e6:.0f} MB taken out\n")
