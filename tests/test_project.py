"""What the project shows at its door: addresses that agree, workflows that run what people run, one version."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
URLS = PYPROJECT["project"]["urls"]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
README_HOOK = PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]


def test_every_address_of_the_project_is_below_the_one_of_its_repository() -> None:
    home = URLS["Repository"]
    assert all(url.startswith(home) for name, url in URLS.items() if name != "Documentation")
    assert all(rule["replacement"].startswith(f"]({home}/") for rule in README_HOOK["substitutions"])
    site = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]
    assert site["site_url"] == URLS["Documentation"]
    assert [entry["link"] for entry in site["extra"]["social"]] == [home]
    files = [*(ROOT / ".github").rglob("*.yml"), *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    name = re.escape(PYPROJECT["project"]["name"])
    named = {url for file in files for url in re.findall(rf"https://github\.com/[^/\s]+/{name}", file.read_text())}
    assert named <= {home}


def on_the_index(text: str) -> str:
    """The README as a package index shows it, by the rules in pyproject.toml."""
    for rule in README_HOOK["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"].replace("$HFPR_VERSION", "9.9.9"), text)
    return text


@pytest.mark.parametrize(
    ("link", "absolute"),
    [
        ("[a](docs/server.md#routes)", f"[a]({URLS['Repository']}/blob/v9.9.9/docs/server.md#routes)"),
        ("![b](docs/images/demo.png)", f"![b]({URLS['Repository']}/raw/v9.9.9/docs/images/demo.png)"),
        ("[c](https://host.example/c)", "[c](https://host.example/c)"),
        ("[d](#try-it)", "[d](#try-it)"),
        ("[e](mailto:e@host.example)", "[e](mailto:e@host.example)"),
    ],
)
def test_a_link_of_the_readme_is_absolute_on_the_index(link: str, absolute: str) -> None:
    assert on_the_index(link) == absolute


def test_the_readme_has_no_relative_link_on_the_index() -> None:
    links = re.findall(r"\]\(([^)]+)\)", on_the_index((ROOT / "README.md").read_text()))
    assert links
    assert all(link.startswith(("https://", "#")) for link in links)


@pytest.mark.parametrize("path", WORKFLOWS, ids=[path.name for path in WORKFLOWS])
def test_a_workflow_has_no_rights_but_those_that_a_job_names(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {}
    for name, job in workflow["jobs"].items():
        assert "permissions" in job, name
        assert "timeout-minutes" in job, name


def test_actions_are_pinned_by_commit_with_the_version_beside_it() -> None:
    uses = [line.strip() for path in WORKFLOWS for line in path.read_text().splitlines() if "uses: " in line]
    loose = [line for line in uses if not re.fullmatch(r"(- )?uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)]
    assert loose == ["- uses: pypa/gh-action-pypi-publish@release/v1"]


def test_ci_runs_what_a_contributor_runs() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"].values()
    commands = {step["run"] for job in jobs for step in job["steps"] if "run" in step}
    assert {".ci/run", ".ci/clients"} <= commands
    targets = re.findall(r"^make (\w+)$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert targets == ["lint", "docs", "slim", "test"]


def test_the_version_is_written_down_once() -> None:
    version = PYPROJECT["project"]["version"]
    homes = [ROOT / home for home in PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]
    written = [file for home in homes for file in home.rglob("*.py") if f'"{version}"' in file.read_text()]
    assert not written


@pytest.mark.parametrize("form", ["bug.yml", "idea.yml"])
def test_a_form_asks_for_something(form: str) -> None:
    content = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE" / form).read_text())
    assert {"name", "description", "body"} <= content.keys()
    ids = [part["id"] for part in content["body"] if part["type"] != "markdown"]
    assert len(ids) == len(set(ids)) > 0
    assert any(part.get("validations", {}).get("required") for part in content["body"])
