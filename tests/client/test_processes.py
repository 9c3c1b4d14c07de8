"""Clients in other processes than the one they were made in: forked, spawned, pickled, copied."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from grpo_client import AsyncReferenceClient, FingerprintMismatch, InvalidSetting, ReferenceClient

PROGRAM = Path(__file__).parent / "processes/forked.py"


def test_forked_spawned_and_copied_clients_answer(reference, socket_server) -> None:
    server = socket_server(0, reference)
    ran = subprocess.run(
        [sys.executable, PROGRAM, f"http://127.0.0.1:{server.server_port}"],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "GRPO_API_KEY": "s3cret"},
    )  # fmt: skip
    server.stop()
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.split() == ["fork", "copy", "spawn", "fork", "async"]
    assert {request.headers["authorization"] for request in reference.seen} == {"Bearer s3cret"}


def test_a_pickle_holds_no_key_and_the_copy_says_so(reference, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRPO_API_KEY", raising=False)
    for kind in (ReferenceClient, AsyncReferenceClient):
        data = pickle.dumps(kind("http://x", api_key="s3cret"))
        assert b"s3cret" not in data
        assert "s3cret" not in repr(pickle.loads(data))  # noqa: S301  # our own
    with ReferenceClient("http://x", api_key="s3cret") as client, pickle.loads(pickle.dumps(client)) as there:  # noqa: S301
        for use in (
            lambda: there.score([[1]], [[[2]]]),
            lambda: there.submit([[1]], [[[2]]]),
            there.info,
            there.health,
        ):
            with pytest.raises(InvalidSetting, match="GRPO_API_KEY"):
                use()
        monkeypatch.setenv("GRPO_API_KEY", "another")
        with pickle.loads(pickle.dumps(client)) as told:  # noqa: S301
            assert told._workers.get().core.settings.api_key == "another"


def test_a_copy_keeps_key_settings_and_pin(reference) -> None:
    transport = httpx.MockTransport(reference)
    with ReferenceClient("http://x", api_key="s3cret", fingerprint="first", transport=transport, max_wait=0) as client:
        client.info()
        with copy.deepcopy(client) as twin:
            reference.fingerprint = "beef"
            with pytest.raises(FingerprintMismatch):
                twin.score([[1]], [[[2]]])
            assert reference.seen[-1].headers["authorization"] == "Bearer s3cret"
    with pytest.raises(FingerprintMismatch), copy.copy(client) as twin:
        twin.info()


def test_a_pickled_client_keeps_its_settings() -> None:
    with ReferenceClient(["http://a", "http://b"], timeout=7, max_wait=3, encoding="json", max_in_flight=2) as client:
        there = pickle.loads(pickle.dumps(client))  # noqa: S301
        with there:
            assert there._workers.get().core.settings == client._workers.get().core.settings
            assert repr(there) == repr(client)
