"""An archive that lacks something, or has something more, is not published."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from tools import check_dist

WHEEL = "grpo_refserver-9.9.9-py3-none-any.whl"
INFO = "grpo_refserver-9.9.9.dist-info"
TEXT = "Metadata-Version: 2.4\nName: grpo-refserver\n\n" + "words " * 200


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    tracked = {"client/grpo_client/__init__.py", "client/grpo_client/py.typed", "server/grpo_server/app.py"}
    monkeypatch.setattr(check_dist, "tracked", lambda: tracked)
    return tracked


def built(
    folder: Path, *, drop: str = "", more: tuple[str, ...] = (), description: str = "", commands: bool = True
) -> Path:
    modules = ["grpo_client/__init__.py", "grpo_client/py.typed", "grpo_server/app.py"]
    scripts = "\n".join(f"{name} = x:y" for name in check_dist.PROJECT["project"]["scripts"]) if commands else ""
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        for name in [*modules, *more, f"{INFO}/licenses/LICENSE"]:
            if name != drop:
                wheel.writestr(name, "")
        wheel.writestr(f"{INFO}/METADATA", TEXT + description)
        wheel.writestr(f"{INFO}/entry_points.txt", f"[console_scripts]\n{scripts}\n")
    with tarfile.open(folder / "grpo_refserver-9.9.9.tar.gz", "w:gz") as sdist:
        for name in sorted(check_dist.tracked() | check_dist.BESIDE):
            sdist.addfile(tarfile.TarInfo(f"grpo_refserver-9.9.9/{name}"), io.BytesIO())
    return folder


def test_what_is_whole_has_no_fault(modules: set[str], tmp_path: Path) -> None:
    links = " [a](https://host.example/a) [b](#b) ![c](https://host.example/c.png) [d](mailto:d@host.example)"
    assert check_dist.faults(built(tmp_path, description=links)) == []
    assert check_dist.main([str(tmp_path)]) == 0


def test_every_fault_of_a_wheel_is_named(modules: set[str], tmp_path: Path) -> None:
    built(tmp_path, drop="grpo_client/py.typed", more=("tests/test_a.py",), description=" [a](docs/a.md)")
    assert check_dist.faults(tmp_path) == [
        f"{WHEEL}: lacks grpo_client/py.typed",
        f"{WHEEL}: has tests/test_a.py, which nobody needs",
        f"{WHEEL}: the description links (docs/a.md)",
    ]
    assert check_dist.main([str(tmp_path)]) == 1


def test_a_wheel_needs_its_licence_and_its_commands(modules: set[str], tmp_path: Path) -> None:
    built(tmp_path, drop=f"{INFO}/licenses/LICENSE", commands=False)
    found = check_dist.faults(tmp_path)
    assert f"{WHEEL}: no LICENSE" in found
    assert {f"{WHEEL}: no command {name}" for name in ("grpo-client", "grpo-server", "grpo-train")} <= set(found)


def test_an_sdist_without_a_module_is_a_fault(modules: set[str], tmp_path: Path) -> None:
    built(tmp_path)
    modules.add("server/grpo_server/later.py")
    found = check_dist.faults(tmp_path)
    assert "grpo_refserver-9.9.9.tar.gz: lacks server/grpo_server/later.py" in found


def test_one_wheel_and_one_sdist_are_published_together(tmp_path: Path) -> None:
    assert check_dist.faults(tmp_path) == [f"{tmp_path}: 0 wheels and 0 sdists where there should be one of each"]
