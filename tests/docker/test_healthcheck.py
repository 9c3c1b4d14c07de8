"""The health check of the image, asked of a real server: over HTTP, HTTPS and mutual TLS."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import trustme
from server_fakes import FakeEngine, real_server

SCRIPT = Path(__file__).parents[2] / "docker" / "healthcheck.py"


def status(url: str, **paths: Path) -> int:
    settings = {f"GRPO_SERVER_{name.upper()}": str(path) for name, path in paths.items()}
    environment = {**os.environ, **settings, "GRPO_SERVER_PORT": url.rpartition(":")[2]}
    return subprocess.run([sys.executable, str(SCRIPT)], env=environment, timeout=60).returncode


@pytest.mark.parametrize("given", [(), ("tls_cert", "tls_key"), ("tls_cert", "tls_key", "tls_client_ca")])
def test_a_ready_server_is_healthy_however_it_is_spoken_to(tmp_path: Path, given: tuple[str, ...]) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("reference.example")
    files = {name: tmp_path / name for name in ("tls_cert", "tls_key", "tls_client_ca")}
    files["tls_cert"].write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    files["tls_key"].write_bytes(issued.private_key_pem.bytes())
    authority.cert_pem.write_to_path(str(files["tls_client_ca"]))
    settings = {name: files[name] for name in given}
    with real_server(FakeEngine(), **settings) as url:
        assert status(url, **settings) == 0
        if given:
            assert status(url) == 1, "plain HTTP is not spoken"
    assert status(url, **settings) == 1
