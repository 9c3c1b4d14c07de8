"""The demo's last lines: a command whose server shows the run that the demo left, at the address that they name."""

from __future__ import annotations

import io
import shlex
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from grpo_server.app import create_app
from grpo_server.config.sources import load_config
from grpo_training import demo
from rich.console import Console
from typer.testing import CliRunner


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What the demo prints when its server and its training are left out; the run is in runs/demo here."""
    monkeypatch.chdir(tmp_path)

    @contextmanager
    def server(model: str, log: Path, console: Console, *, runs: Path):
        assert runs == tmp_path / "runs"
        yield "http://127.0.0.1:1"

    monkeypatch.setattr(demo, "reference_server", server)
    monkeypatch.setattr(demo, "show_scores", lambda url, console: None)
    monkeypatch.setattr(demo, "run_with_display", lambda settings, console, **how: leave_a_run())
    config = Path(__file__).parents[2] / "examples/arithmetic.yaml"
    result = CliRunner().invoke(demo.app, ["--config", str(config), "--output", "runs/demo"])
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def leave_a_run() -> None:
    Path("runs/demo").mkdir(parents=True, exist_ok=True)
    Path("runs/demo/metrics.jsonl").write_text('{"step": 0}\n')


@pytest.mark.anyio
async def test_the_command_that_is_named_shows_the_run(told: list[str]) -> None:
    command, address = told[-2].removeprefix("in a browser: "), told[-1].removeprefix("and open ")
    assert address == "http://localhost:8000/ui/runs#runs=demo"
    name, *flags = shlex.split(command)
    assert name == "grpo-server"
    config = load_config(flags)
    assert f":{config.port}/" in address
    transport = httpx.ASGITransport(create_app(config, lambda: None))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8000") as client:
        assert (await client.get("/ui/runs")).status_code == 200
        assert [run["name"] for run in (await client.get("/ui/api/runs")).json()["runs"]] == ["demo"]


def test_while_it_trains_its_own_server_shows_it(told: list[str]) -> None:
    assert "watch it in a browser: http://127.0.0.1:1/ui/runs#runs=demo" in told


def test_a_path_with_blanks_stays_one_argument() -> None:
    assert demo.serving_command("demo", Path("my runs/demo")) == "grpo-server --model demo --runs 'my runs'"
    assert demo.page_of(Path("my runs/a b")) == "/ui/runs#runs=a%20b"
    console = Console(file=io.StringIO(), width=20)
    demo.tell(console, "a line that is longer than the console is wide")
    assert console.file.getvalue().count("\n") == 1  # type: ignore[attr-defined]
