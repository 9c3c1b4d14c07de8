"""Keys change while the server runs: by a change of the file, by SIGHUP, never by a broken file, and without a gap."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

import httpx
import pytest
from grpo_server.access.named_keys import NamedKeys
from grpo_server.app import create_app
from key_files import SCORE, bearer, entry, of_each_kind, sha256, write
from server_fakes import PATIENCE, FakeClock, FakeEngine, make_config, running

BODY = {"groups": [{"prompt": [1], "completions": [[2]]}]}


def test_a_broken_file_changes_nothing_and_is_said_loudly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = NamedKeys(of_each_kind(tmp_path))
    holder = keys.ring.holder(SCORE.encode())
    for broken in ("", "keys: []", "keys: [", "keys:\n  - name: x\n    key: some-secret\n    scopes: [al]\n"):
        keys.path.write_text(broken)
        keys.reload()
        assert keys.ring.holder(SCORE.encode()) is holder
        assert not keys.trusted
    keys.path.unlink()
    keys.reload()
    assert keys.ring.holder(SCORE.encode()) is holder
    assert (keys.reloads, keys.failures) == (0, 5)
    errors = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert len(errors) == 5
    assert all("the 3 keys read before stay in force" in r.getMessage() for r in errors)
    assert "some-secret" not in caplog.text
    of_each_kind(tmp_path)
    keys.reload()
    assert keys.trusted


def test_balances_stay_with_their_names(tmp_path: Path) -> None:
    clock = FakeClock()
    path = write(tmp_path / "keys.yaml", entry("a", "one", tokens_per_minute=100))
    keys = NamedKeys(path, clock)
    account = keys.ring.callers[0].account
    account.enter(90)
    write(path, entry("a", "two", tokens_per_minute=50), entry("b", "three"))
    keys.reload()
    assert keys.ring.holder(b"one") is None
    renewed = keys.ring.holder(b"two")
    assert renewed is not None
    assert renewed.account is account
    assert account.limits.tokens_per_minute == 50
    with pytest.raises(Exception, match="come back in 48"):  # 10 were left, 50 are needed, 50/60 come a second
        account.check(50, 1000.0)


@pytest.mark.anyio
async def test_keys_change_under_load_without_a_refusal_of_a_valid_one(engine: FakeEngine, tmp_path: Path) -> None:
    """Three clients ask without a pause, each with the newest key that it was given; the file changes fifteen times, written
    over, replaced and broken in between."""
    path = write(tmp_path / "keys.yaml", entry("trainer", "key-0"))
    app = create_app(make_config(keys_file=path), lambda: engine)
    newest, asked, done = 0, [0, 0, 0], asyncio.Event()

    async with running(app) as client:
        named: NamedKeys = app.state.service.keys.named

        async def ask_on(i: int) -> None:
            while not done.is_set():
                answer = await client.post("/v1/logprobs", json=BODY, headers=bearer(f"key-{newest}"))
                assert answer.status_code == 200, (newest, answer.text)
                asked[i] += 1

        async def opens(key: str) -> bool:
            return (await client.get("/v1/reference", headers=bearer(key))).status_code == 200

        async def until(key: str, is_open: bool) -> None:
            async with asyncio.timeout(PATIENCE):
                while await opens(key) != is_open:
                    await asyncio.sleep(0)

        clients = [asyncio.create_task(ask_on(i)) for i in range(3)]
        for turn in range(1, 6):
            both = f"  - name: trainer\n    hash: [{sha256(f'key-{newest}')}, {sha256(f'key-{turn}')}]\n"
            path.write_text("keys:\n" + both)  # in place, where a reader may meet half of it
            await until(f"key-{turn}", True)
            before, newest = newest, turn
            await asyncio.gather(*(opens(f"key-{turn}") for _ in range(5)))  # requests with the old one are over
            write(path, "  - nonsense\n")
            failures = named.failures
            async with asyncio.timeout(PATIENCE):
                while named.failures == failures:
                    await asyncio.sleep(0)
            counts = [*asked]
            async with asyncio.timeout(PATIENCE):
                while any(now < then + 2 for now, then in zip(asked, counts, strict=True)):
                    await asyncio.sleep(0)
            write(path, entry("trainer", f"key-{turn}"))
            await until(f"key-{before}", False)
        done.set()
        await asyncio.gather(*clients)
    assert min(asked) > 10


PROGRAM = """
import sys
from pathlib import Path
from grpo_server import logs
from grpo_server.access.reloading import Reloading
from grpo_server.process import serve
from server_fakes import FakeEngine, make_config

Reloading.changed = lambda self: None  # as on a file system that sends no word
logs.configure("info", "text")
sys.exit(serve(make_config(port=0, keys_file=Path(sys.argv[1])), FakeEngine))
"""


@pytest.mark.anyio
async def test_sighup_reads_the_file_again(tmp_path: Path) -> None:
    path = of_each_kind(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, str(path), stderr=asyncio.subprocess.PIPE, env=environment
    )
    assert server.stderr is not None

    async def line_with(words: str) -> str:
        async with asyncio.timeout(PATIENCE):
            while words not in (line := (await server.stderr.readline()).decode()):  # type: ignore[union-attr]
                assert line, f"the server ended before it said {words!r}"
        return line

    try:
        url = (await line_with("takes requests")).split("s: ")[-1].split()[0]
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client:
            assert (await client.get("/v1/reference", headers=bearer(SCORE))).status_code == 200
            write(path, entry("scorer", "fresh"))
            server.send_signal(signal.SIGHUP)
            await line_with("read again: 1 keys; new: none; gone: scraper, swapper")
            assert (await client.get("/v1/reference", headers=bearer("fresh"))).status_code == 200
            assert (await client.get("/v1/reference", headers=bearer(SCORE))).status_code == 401
        server.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(server.wait(), PATIENCE) == 0
    finally:
        if server.returncode is None:
            server.kill()
            await server.wait()


def test_every_key_is_compared_however_early_one_matches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    ring = NamedKeys(of_each_kind(tmp_path)).ring

    def counting(a: bytes, b: bytes) -> bool:
        compared.append(a)
        return a == b

    monkeypatch.setattr("grpo_server.access.named_keys.hmac.compare_digest", counting)
    for key in (SCORE.encode(), b"nobody's"):
        compared.clear()
        ring.holder(key)
        assert len(compared) == 3
