"""kill -9 at any point of a swap or a mix: what a restart finds is one whole reference, the old or the new.

The server runs in a fork of this process and kills itself at the n-th event that Python's audit hooks see of the change: every
file that is opened, renamed or removed, every directory, process and import.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from file_engine import FileEngine, checkpoint
from grpo_server.app import create_app
from grpo_server.swapping.state import StateDir
from server_fakes import fingerprint, make_config, running

POINTS = 21
ADMIN = {"Authorization": "Bearer root"}


async def _serve_and_change(
    engine: FileEngine, state: Path, route: str, body: dict[str, Any], begin: Callable[[], None]
) -> int:
    app = create_app(make_config(), lambda: engine, state=StateDir(state))
    async with running(app) as client:
        begin()
        response = await client.post(route, json=body, headers=ADMIN)
        assert response.status_code == 200, response.text
        return response.json()["version"]


def _in_a_fork(work: Callable[[], None]) -> int:
    """Its wait status; threads and locks of this process are not touched by it."""
    if child := os.fork():
        return os.waitpid(child, 0)[1]
    try:
        work()
        os._exit(0)
    finally:
        os._exit(1)


def _counting(kill_at: int | None, told: int) -> Callable[[], None]:
    """What arms a hook that counts events from then on, and writes a dot for each, or kills at one of them."""
    seen = itertools.count(1)
    armed = False

    def hook(_: str, __: tuple[Any, ...]) -> None:
        if armed:
            n = next(seen)
            if n == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            os.write(told, b".")

    def begin() -> None:
        nonlocal armed
        armed = True

    sys.addaudithook(hook)
    return begin


@pytest.mark.parametrize("kind", ["swap", "ema"])
def test_a_restart_serves_one_of_the_two_whole(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_SERVER_ADMIN_KEY", "root")
    first, second = checkpoint(tmp_path / "first", "first"), checkpoint(tmp_path / "second", "second")
    route, body = ("/admin/reference", {}) if kind == "swap" else ("/admin/reference/ema", {"decay": 0.5})
    before, after = "first", "second" if kind == "swap" else "first+second"

    def first_swap() -> None:
        engine = FileEngine("fake")
        asyncio.run(_serve_and_change(engine, started, "/admin/reference", {"model": str(first)}, lambda: None))

    started = tmp_path / "started"
    assert _in_a_fork(first_swap) == 0

    def run(state: Path, kill_at: int | None) -> tuple[int, int]:
        """Wait status of the change, and how many events there were."""
        reads, tells = os.pipe()

        def work() -> None:
            begin = _counting(kill_at, tells)
            asyncio.run(_serve_and_change(resumed(), state, route, {"model": str(second), **body}, begin))

        def resumed() -> FileEngine:
            engine = FileEngine("first")
            engine.version = 2
            return engine

        shutil.copytree(started, state)
        status = _in_a_fork(work)
        os.close(tells)
        with os.fdopen(reads, "rb") as pipe:
            return status, len(pipe.read())

    status, events = run(tmp_path / "whole", None)
    assert status == 0
    assert _found(tmp_path / "whole") == (3, after)
    assert events > POINTS
    found, killed = set(), 0
    for point in {round(1 + i * (events - 1) / (POINTS - 1)) for i in range(POINTS)}:
        state = tmp_path / f"killed-{point}"
        status, _ = run(state, point)
        assert status in (0, signal.SIGKILL)  # a run may have an event or two less than the first
        killed += status == signal.SIGKILL
        found.add(_found(state))
    assert found == {(2, before), (3, after)}
    assert killed >= POINTS - 1


def _found(path: Path) -> tuple[int, str]:
    """What a restart finds: version and weights. Nothing that was begun is left."""
    StateDir(path).close()  # twice: a process that copies files for the one that was killed takes a moment to end
    state = StateDir(path)
    recorded = state.recorded
    assert recorded is not None
    directory = state.directory_of(recorded)
    assert directory is not None
    weights = (directory / "weights").read_text()
    assert (directory / "config.json").read_text() == "{}"
    assert recorded.fingerprint == fingerprint(weights)
    names = {p.name for p in (path / "references").iterdir()}
    assert not [name for name in names if name.startswith(".")]
    assert max(names) == directory.name
    assert {p.name for p in path.iterdir()} == {"state.json", "lock", "references"}
    state.close()
    return recorded.version, weights
