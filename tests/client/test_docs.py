"""The code and the commands in docs/client.md run, and its tables say what there is."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import grpo_client
import httpx
import pytest
from grpo_client import cli
from grpo_client.settings import ClientOptions, ClientSettings
from typer.testing import CliRunner

PAGE = (Path(__file__).parents[2] / "docs/client.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippet(snippet: str, reference, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, handler in (("ReferenceClient", reference), ("AsyncReferenceClient", reference.async_handler())):
        wired = partial(getattr(grpo_client, name), transport=httpx.MockTransport(handler))
        monkeypatch.setattr(grpo_client, name, wired)
    exec(compile(snippet, "docs/client.md", "exec"), {"__name__": "snippet"})
    assert reference.seen, "it talked to the server"


def commands() -> list[str]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    lines = [line for kind, block in blocks if not kind for line in block.splitlines() if "grpo-client" in line]
    return [line[line.index("grpo-client") :].partition(" | ")[0] for line in lines]


@pytest.mark.parametrize("command", commands())
def test_command(command: str, reference, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rollout = b'{"prompt": [1, 2], "completions": [[3]]}\n'
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rollouts.jsonl").write_bytes(rollout)
    monkeypatch.setattr(
        cli, "ReferenceClient", partial(grpo_client.ReferenceClient, transport=httpx.MockTransport(reference))
    )
    result = CliRunner().invoke(cli.app, command.split()[1:], input=rollout)
    assert result.exit_code == 0, result.output
    assert reference.seen, "it talked to the server"


def test_there_are_commands_to_run() -> None:
    assert {line.split()[1] for line in commands()} == {"wait", "info", "score"}


def test_the_page_names_every_error() -> None:
    names = [name for name in grpo_client.__all__ if isinstance(getattr(grpo_client, name), type)]
    errors = [name for name in names if issubclass(getattr(grpo_client, name), grpo_client.GrpoClientError)]
    assert all(f"`{name}`" in PAGE for name in errors if name != "APIError")


def test_defaults_are_those_of_the_page() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| `?\"?([^|`\"]*)\"?`? \|", PAGE, re.MULTILINE))
    settings = ClientSettings.of("http://x", {})
    assert {name: float(rows[name]) for name in ("timeout", "max_wait", "max_request_tokens", "max_in_flight")} == {
        "timeout": settings.timeout,
        "max_wait": settings.retry.max_wait,
        "max_request_tokens": settings.max_request_tokens,
        "max_in_flight": settings.max_in_flight,
    }
    assert rows["encoding"] == settings.encoding
    assert rows["fingerprint"] == str(settings.fingerprint)


def test_the_page_names_every_option() -> None:
    assert all(f"`{name}`" in PAGE for name in ClientOptions.__annotations__)
