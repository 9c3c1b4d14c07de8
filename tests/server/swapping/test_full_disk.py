"""A swap on a full disk: the old reference serves on, whoever asked is told to make room, and nothing is left behind."""

from __future__ import annotations

import contextlib
import errno
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_engine import FileEngine, checkpoint
from grpo_server.app import create_app
from grpo_server.durable import is_full
from grpo_server.swapping import state as state_module
from grpo_server.swapping.state import StateDir
from server_fakes import make_config, running

ADMIN = {"Authorization": "Bearer root"}
BODY = {"groups": [{"prompt": [1, 2], "completions": [[3, 4], [5]]}]}


@contextlib.contextmanager
def small_files(most: int) -> Iterator[None]:
    """No file may have more bytes, of this process or of those that it starts."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(state: Path) -> set[str]:
    return {p.name for p in state.iterdir()} | {p.name for p in (state / "references").iterdir()}


@pytest.mark.anyio
@pytest.mark.parametrize("where", ["files", "directory", "state"])
async def test_the_old_reference_serves_on_and_the_disk_is_named(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRPO_SERVER_ADMIN_KEY", "root")
    model = checkpoint(tmp_path / "second", "second")
    (model / "more.safetensors").write_bytes(bytes(2**21))
    app = create_app(make_config(), lambda: FileEngine("first"), state=StateDir(tmp_path / "state"))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with running(app) as client:
        before = names(tmp_path / "state")
        with monkeypatch.context() as broken:
            if where == "directory":
                broken.setattr(StateDir, "new_directory", full)
            if where == "state":
                broken.setattr(state_module.os, "fsync", full)
            with small_files(2**20) if where == "files" else contextlib.nullcontext():
                refused = await client.post("/admin/reference", json={"model": str(model)}, headers=ADMIN)
        told = (await client.get("/v1/reference")).json()
        score = await client.post("/v1/logprobs", json=BODY)
        kept = {name for name in names(tmp_path / "state") if name != "00000002"}  # goes with the next swap
        again = await client.post("/admin/reference", json={"model": str(model)}, headers=ADMIN)
    assert (refused.status_code, refused.json()["error"]["code"]) == (507, "insufficient_storage")
    assert "the old reference serves on" in refused.json()["error"]["message"]
    assert (told["version"], told["swap"]["state"]) == (1, "failed")
    assert score.json()["reference"]["version"] == 1
    assert kept == before
    assert (again.status_code, again.json()["version"]) == (200, 2)


def test_a_full_disk_is_known_behind_what_it_became() -> None:
    inner = OSError(errno.EDQUOT, "quota")
    outer = ValueError("the download failed")
    outer.__cause__ = inner
    assert is_full(outer)
    assert not is_full(OSError(errno.EACCES, "no"))
    assert not is_full(None)
