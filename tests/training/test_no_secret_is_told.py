"""A real `grpo-server` at debug level and `grpo-client`, with keys planted wherever one can be given: none is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from .run.test_server_killed import Server

KEYS = {
    "GRPO_SERVER_API_KEY": "planted-api-51aa",
    "GRPO_SERVER_ADMIN_KEY": "planted-admin-9e1c",
    "HF_TOKEN": "planted-hub-990b",
}
WRONG, IN_URL, IN_QUERY, IN_MODEL = "planted-wrong-3f7e", "planted-url-77c2", "planted-query-8d05", "planted-model-6b1f"
PLANTED = (*KEYS.values(), WRONG, IN_URL, IN_QUERY, IN_MODEL)


def grpo_client(*arguments: str, key: str) -> str:
    command = [str(Path(sys.executable).with_name("grpo-client")), *arguments]
    environment = os.environ | {"GRPO_API_KEY": key, "COLUMNS": "400"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    return ended.stdout + ended.stderr


def test_a_server_and_its_callers(tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GRPO_SERVER_LOG_LEVEL", "debug")
    server = Server(tiny_path, tmp_path / "server.log")
    api, admin = KEYS["GRPO_SERVER_API_KEY"], KEYS["GRPO_SERVER_ADMIN_KEY"]
    told: list[str] = []
    server.start()
    try:
        told.append(grpo_client("wait", "--url", server.url, key=api))
        assert "ready" in told[0]
        score = {"groups": [{"prompt": [5], "completions": [[6, 7]]}]}
        swap = {"model": f"https://me:{IN_MODEL}@host/model"}
        for headers in (
            {"Authorization": f"Bearer {api}"},
            {"Authorization": f"Bearer {admin}"},
            {"Authorization": f"Bearer {WRONG}"},
            {"Authorization": WRONG},
            {"X-Api-Key": WRONG},
        ):
            with httpx.Client(base_url=server.url, headers=headers, timeout=60) as http:
                told.append(http.get(f"/v1/reference?api_key={IN_QUERY}").text)
                told.append(http.get(f"/nowhere?token={IN_QUERY}").text)
                told += [
                    http.post(route, json=body).text
                    for route, body in (
                        ("/v1/logprobs", score),
                        ("/v1/logprobs", score | {"temperature": "warm"}),
                        ("/admin/reference", swap),
                    )
                ]
        port = server.url.rpartition(":")[2]
        for url in (f"http://me:{IN_URL}@127.0.0.1:{port}", f"me:{IN_URL}@127.0.0.1", f"{server.url}?key={IN_URL}"):
            told.append(grpo_client("info", "--url", url, key=api))
        told.append(grpo_client("info", "--url", server.url, key=WRONG))
        told.append(grpo_client("info", "--url", server.url, key=f"{WRONG}\nx"))
        told.append(grpo_client("info", "--url", "http://127.0.0.1:9", "--max-wait", "0", key=api))
    finally:
        server.stop(signal.SIGTERM)
    log = (tmp_path / "server.log").read_text(encoding="utf-8")
    assert "/admin/reference" in log
    assert [secret for secret in PLANTED if secret in log] == []
    assert [(secret, text) for text in told for secret in PLANTED if secret in text] == []
