"""`grpo-client load`, `drop` and `swap --reference` against a real server: what they print, and with which status they end."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import Result
from file_engine import FileEngine, checkpoint
from grpo_client import ReferenceClient, cli
from grpo_client.errors import NotFound
from grpo_server.engine.contract import Addition, OnStage
from server_fakes import FakeEngine, fingerprint, real_server
from typer.testing import CliRunner


class Engine(FileEngine):
    """Lays nothing that calls itself wide. added: the last further one."""

    added: FakeEngine

    def adapt(self, addition: Addition, on_stage: OnStage) -> FakeEngine:
        if (Path(addition.source) / "weights").read_text() == "wide":
            raise ValueError("the adapter does not fit its base model: of another shape are ...")
        return super().adapt(addition, on_stage)

    def add(self, addition: Addition, on_stage: OnStage) -> FakeEngine:
        self.added = super().add(addition, on_stage)
        return self.added


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    for name in ("first", "more", "wide", "lora"):
        checkpoint(directory / name, name)
    return directory


@pytest.fixture(scope="module")
def engine() -> Engine:
    engine = Engine("first")
    engine.served = "a"
    return engine


@pytest.fixture(scope="module")
def url(models: Path, engine: Engine) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRPO_SERVER_ADMIN_KEY", "root")
        with real_server(engine, model=f"a={models / 'first'}", swap_root=models) as url:
            yield url


@pytest.fixture(scope="module")
def second(models: Path) -> Iterator[str]:
    """Another server, with another default."""
    engine = Engine("first")
    engine.served = "z"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRPO_SERVER_ADMIN_KEY", "root")
        with real_server(engine, model=f"z={models / 'first'}") as url:
            yield url


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_ADMIN_KEY", "root")
    monkeypatch.delenv("GRPO_API_KEY", raising=False)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, [str(one) for one in arguments])


def names(url: str) -> list[str]:
    with ReferenceClient(url, max_wait=0) as client:
        return list(client.references())


def test_one_is_loaded_replaced_and_dropped(url: str, models: Path) -> None:
    loaded = run("load", "b", models / "more", "--url", url)
    assert (loaded.exit_code, loaded.stdout) == (0, f"b version 1 {fingerprint('more')}\n")
    laid = run("load", "x", models / "lora", "--base", "b", "--url", url)
    assert (laid.exit_code, laid.stdout) == (0, f"x version 1 {fingerprint('more+lora')}\n")
    swapped = run("swap", models / "first", "--reference", "b", "--url", url)
    assert (swapped.exit_code, swapped.stdout) == (0, f"b version 2 {fingerprint('first')}\n")
    base = run("drop", "b", "--url", url)
    assert base.exit_code == 1
    assert "b is the base of x; drop that one first" in base.stderr
    assert "(field name)" in base.stderr
    for name in ("x", "b"):
        dropped = run("drop", name, "--url", url)
        assert (dropped.exit_code, dropped.stdout) == (0, f"{name} is let go of\n")
    assert names(url) == ["a"]


# Command, what it must say, status. MODELS stands for the directory below which --swap-root lets models be taken.
REFUSED = {
    "the name is taken": ("load a MODELS/more", r"swap --reference a\), drop it first.*\(field name\)", 1),
    "no name": ("load ../b MODELS/more", r"'../b' is no name; give letters, digits.*\(field name\)", 1),
    "no such base": ("load b MODELS/lora --base c", r"'c' is not here; this server hosts 'a'.*\(field base\)", 1),
    "a base of another size": ("load b MODELS/wide --base a", r"does not fit its base model.*\(field source\)", 1),
    "no such path": ("load b /nowhere/there", r"there is no directory /nowhere/there;.*\(field source\)", 1),
    "not below the root": ("load b /", r"--swap-root\); the references that were here.*\(field source\)", 1),
    "the hub is not allowed": ("load b org/name", r"taken from the hub \(--swap-hub\).*\(field source\)", 1),
    "nothing of that name to drop": ("drop b", r"'b' is not here; this server hosts 'a'.*\(field name\)", 1),
    "a path as a name to drop": ("drop org/name", r"'org/name' is not here; .*\(field name\)", 1),
    "the default one": ("drop a", r"a answers who names no model.*POST /admin/reference.*\(field name\)", 1),
    "nothing of that name to replace": (
        "swap MODELS/more --reference b",
        r"'b' is not here.*grpo-client load.*\(field reference\)",
        1,
    ),
    "an empty name": ("load '' MODELS/more", "name must be a text that is not empty", 2),
    "an empty source": ("load b ''", "source must be a text that is not empty", 2),
    "an empty base": ("load b MODELS/more --base ''", "base must be a text that is not empty", 2),
    "an empty name to drop": ("drop ''", "name must be a text that is not empty", 2),
    "no source": ("load b", "Missing argument", 2),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_names_the_field_and_the_remedy(case: str, url: str, models: Path) -> None:
    command, said, status = REFUSED[case]
    words = [word.replace("MODELS", str(models)).replace("''", "") for word in command.split(" ")]
    done = run(*words, "--url", url)
    assert done.exit_code == status, done.output
    stderr = " ".join(done.stderr.split())
    assert re.search(said, stderr), stderr
    assert names(url) == ["a"]


@pytest.mark.parametrize("command", [("load", "b", "more"), ("drop", "a"), ("swap", "more")], ids=lambda c: c[0])
@pytest.mark.parametrize("key", [None, "wrong"])
def test_a_wrong_key_says_from_where_it_comes(
    key: str | None, command: tuple[str, ...], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GRPO_ADMIN_KEY") if key is None else monkeypatch.setenv("GRPO_ADMIN_KEY", key)
    done = run(*command, "--url", url)
    assert done.exit_code == 1
    assert "takes the key from GRPO_ADMIN_KEY, else from GRPO_API_KEY (field Authorization)" in done.stderr
    assert "wrong" not in done.stderr


def test_a_server_that_is_not_there_is_status_1() -> None:
    done = run("drop", "b", "--url", "http://127.0.0.1:1")
    assert (done.exit_code, "ConnectError" in done.stderr) == (1, True)


def test_what_was_accepted_is_answered_before_the_command_ends(url: str, models: Path, engine: Engine) -> None:
    assert run("load", "b", models / "more", "--url", url).exit_code == 0
    added = engine.added
    added.hold()
    with ReferenceClient(url, model="b", max_wait=0) as client, ThreadPoolExecutor(1) as pool:
        waiting = client.submit([[1, 2]], [[[3, 4]]])
        asyncio.run(added.entered())
        dropping = pool.submit(run, "drop", "b", "--url", url)
        while names(url) != ["a"]:
            pass
        with pytest.raises(NotFound):
            client.score([[1, 2]], [[[3, 4]]])
        assert not dropping.done()
        added.let_go()
        assert waiting.result().reference.fingerprint == fingerprint("more")
        assert dropping.result().exit_code == 0
        assert added.closed


def test_several_servers_say_who_has_done_it(url: str, second: str, models: Path) -> None:
    both = ("--url", url, "--url", second)
    assert run("load", "b", models / "more", "--url", second).exit_code == 0
    taken = run("load", "b", models / "more", *both)
    assert taken.exit_code == 1
    assert "there is a reference b already" in taken.stderr
    assert f"{url} hosts it by now" in taken.stderr
    assert run("drop", "b", "--url", second).exit_code == 0
    lacking = run("swap", models / "first", "--reference", "b", *both)
    assert lacking.exit_code == 1
    assert (
        f"no server has moved: load it where it is missing (grpo-client load b SOURCE --url {second})" in lacking.stderr
    )
    gone = run("drop", "b", *both)
    assert gone.exit_code == 1
    assert f"{url} has let go of it" in gone.stderr
    assert names(url) == ["a"]


def test_a_key_that_no_header_can_carry_is_status_2(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_ADMIN_KEY", "ro\not")
    done = run("drop", "b", "--url", url)
    assert (done.exit_code, "GRPO_ADMIN_KEY: " in done.stderr, "ro\not" in done.stderr) == (2, True, False)


def test_wait_is_for_the_reference_that_is_named(url: str) -> None:
    there = run("wait", "--url", url, "--model", "a", "--timeout", "5")
    assert (there.exit_code, f"ready: a ({fingerprint('first')[:12]})" in there.stderr) == (0, True)
    lacking = run("wait", "--url", url, "--model", "b", "--timeout", "5")
    assert (lacking.exit_code, "this server hosts 'a'" in lacking.stderr) == (1, True)
