"""Where other people's code begins: what is private to torch is named in one module, and the releases that CI has seen are the
last that are allowed."""

import ast
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
ADAPTER = ROOT / "numerics/grpo_numerics/torch_ops.py"


def chain_of(node: ast.AST) -> list[str]:
    """a.b.c as its names; what begins otherwise than with a name gives none."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return [node.id, *reversed(names)] if isinstance(node, ast.Name) else []


def test_what_is_private_to_torch_is_reached_through_one_module() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{node.lineno}: {'.'.join(chain)}"
        for package in ("client", "numerics", "server", "training")
        for file in (ROOT / package).rglob("*.py")
        if file != ADAPTER
        for node in ast.walk(ast.parse(file.read_text()))
        if (chain := chain_of(node))[:1] == ["torch"] and any(n.startswith("_") and n[1:2] != "_" for n in chain)
    ]
    assert not found, found


def seen_by_ci() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text() + (ROOT / "tests/doors/requirements-trl.txt").read_text()
    pinned = dict(line.split("==") for line in lines.splitlines() if "==" in line and line[0] != "#")
    return {name: Version(pinned[name].split()[0]) for name in ("torch", "transformers", "trl")}


@pytest.mark.parametrize("name", ["torch", "transformers", "trl"])
def test_the_last_release_that_is_allowed_is_the_one_that_ci_has_seen(name: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    seen = seen_by_ci()[name]
    declared = [r for lines in extras.values() for line in lines if (r := Requirement(line)).name == name]
    assert declared
    for requirement in declared:
        assert requirement.specifier.contains(seen), requirement
        assert not requirement.specifier.contains(f"{seen.major}.{seen.minor + 1}"), (
            f"{requirement}: CI has seen {seen}"
        )
