"""What a client sends can forge no log line, before authentication or after, whichever form the log has."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Iterator
from typing import Literal
from urllib.parse import quote

import pytest
from fastapi import APIRouter
from grpo_server import logs
from grpo_server.app import create_app
from server_fakes import FakeEngine, make_config, running, serving

FORGED = "2026-01-01 00:00:00,000 INFO    grpo_server.access [-] POST /admin/reference 200"
# Line breaks of every kind, terminal control, and characters that reorder or hide text.
CONTROLS = ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x1b[2J", "\x00", "\x07", "\x08", "\x7f", "\x85", "\x9b31m"]
CONTROLS += ["\u2028", "\u2029", "\u202e", "\u2066", "\u200b", "\ufeff", "\x1c", "\x1e"]


@contextlib.contextmanager
def logging_in(form: Literal["text", "json"]) -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    logs.configure("debug", form)
    try:
        yield
    finally:
        root.handlers[:], root.level = before


FORMS = pytest.mark.parametrize("form", ["text", "json"])


@pytest.mark.anyio
@FORMS
@pytest.mark.parametrize("with_key", [False, True])
async def test_a_path_is_one_line_of_printable_characters(
    form: Literal["text", "json"],
    with_key: bool,
    engine: FakeEngine,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if with_key:
        monkeypatch.setenv("GRPO_SERVER_API_KEY", "alpha")
    with logging_in(form):
        async with serving(engine) as client:
            capsys.readouterr()
            for control in CONTROLS:
                response = await client.get(f"/x{quote(control + FORGED, errors='surrogateescape')}")
                assert response.status_code == (401 if with_key else 404)
            text = capsys.readouterr().err
    lines = [line for line in text.split("\n") if "httpx" not in line]
    assert lines.pop() == ""
    assert len(lines) == len(CONTROLS)
    for line in lines:
        assert line.isprintable(), line
        assert "GET /x" in line
        assert (json.loads(line)["message"] if form == "json" else line).startswith("GET /x") is (form == "json")


@pytest.mark.anyio
@FORMS
async def test_the_words_of_a_traceback_begin_no_line(
    form: Literal["text", "json"], engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    router = APIRouter()

    @router.get("/broken")
    async def broken(word: str) -> None:
        raise ZeroDivisionError(word)

    app = create_app(make_config(), lambda: engine)
    app.include_router(router)
    with logging_in(form):
        async with running(app) as client:
            await client.get("/broken", params={"word": f"a\n{FORGED}\x1b[2J\r{FORGED}"})
    lines = capsys.readouterr().err.split("\n")
    assert any("ZeroDivisionError" in line for line in lines)
    assert not any(line.startswith("2026-01-01") for line in lines)
    assert all(line.isprintable() for line in lines)


def test_what_is_shown_can_be_told_apart_and_is_not_endless() -> None:
    assert logs.loggable("/v1/logprobs") == "/v1/logprobs"
    assert logs.loggable("/密钥/é") == "/密钥/é"
    assert logs.loggable("a\nb") == "a\\nb"
    assert logs.loggable("a\\nb") == "a\\\\nb"
    assert logs.loggable("\udcff") == "\\udcff"
    long = logs.loggable("x" * 10_000)
    assert len(long) < 400
    assert "10000 characters" in long


def test_a_message_of_several_lines_is_indented() -> None:
    record = logging.LogRecord("a", logging.WARNING, "f", 1, "one\ntwo\x1b[0m\tthree", None, None)
    assert logs.TextFormatter("%(message)s").format(record) == "one\n    two\\x1b[0m\tthree"
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        record.exc_info = sys.exc_info()
    assert all(line.startswith("    ") for line in logs.TextFormatter("%(message)s").format(record).split("\n")[1:])


@pytest.mark.anyio
async def test_a_probe_is_a_line_only_when_its_answer_changes(
    engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "grpo_server.access")
    app = create_app(make_config(), lambda: engine)
    async with running(app) as client:
        door = app.state.service.scheduler.door
        for path in ("/livez", "/livez", "/readyz", "/readyz", "/metrics"):
            await client.get(path)
        door.swapping = True
        for path in ("/readyz", "/readyz", "/livez", "/nowhere", "/nowhere"):
            await client.get(path)
        door.swapping = False
        for path in ("/readyz", "/readyz"):
            await client.get(path)
    lines = [(r.getMessage().split()[1:3], r.levelname) for r in caplog.records if r.name == "grpo_server.access"]
    assert [" ".join(words) for words, level in lines if level == "INFO"] == [
        "/readyz 503",
        "/nowhere 404",
        "/nowhere 404",
        "/readyz 200",
    ]
    assert len(lines) == 12
