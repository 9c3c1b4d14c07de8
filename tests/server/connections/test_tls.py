"""HTTPS over a real socket: the project's own client, with and without certificates, and certificates that change."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

import grpo_client
import httpx
import pytest
import trustme
from grpo_client import TLS, AsyncReferenceClient, ReferenceClient
from grpo_server.config.sources import load_config
from grpo_server.connections.tls import Certificates
from server_fakes import PATIENCE, FakeEngine, make_config, real_server


class Files:
    """An authority, and PEM files of what it issued."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self._directory = directory
        self.authority = trustme.CA(organization_name=name)
        self.ca = directory / f"{name}.pem"
        self.authority.cert_pem.write_to_path(str(self.ca))

    def issue(self, name: str) -> tuple[Path, Path]:
        issued = self.authority.issue_cert("127.0.0.1", "localhost", common_name=name)
        cert, key = self._directory / f"{name}.pem", self._directory / f"{name}.key"
        cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        key.write_bytes(issued.private_key_pem.bytes())
        return cert, key


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def secured(url: str) -> str:
    return url.replace("http://", "https://")


PARSERS = pytest.mark.parametrize("parser", ["httptools", "h11"])


@PARSERS
def test_the_client_trusts_the_authority_that_it_is_given_and_no_other(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parser: str
) -> None:
    cert, key = files.issue("server")
    stranger = Files(tmp_path, "stranger")
    with real_server(FakeEngine(), parser, tls_cert=cert, tls_key=key) as url:
        with ReferenceClient(secured(url), tls=TLS(ca_file=files.ca), max_wait=0) as client:
            assert len(client.score([[1, 2]], [[[3, 4, 5]]]).logprobs) == 3
        for tls in (TLS(), TLS(ca_file=stranger.ca)):
            with (
                ReferenceClient(secured(url), tls=tls, max_wait=0) as client,
                pytest.raises(grpo_client.ConnectionFailed, match="certificate verify failed"),
            ):
                client.info()
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/livez")  # plain HTTP gets nothing
        monkeypatch.setenv("GRPO_CA_FILE", str(files.ca))

        async def asked() -> str:
            async with AsyncReferenceClient(secured(url), max_wait=0) as client:
                return (await client.info()).model

        assert asyncio.run(asked()) == "fake"


@PARSERS
def test_mutual_tls_lets_in_who_shows_a_certificate_of_the_authority(files: Files, tmp_path: Path, parser: str) -> None:
    cert, key = files.issue("server")
    own, own_key = files.issue("trainer")
    other, other_key = Files(tmp_path, "stranger").issue("other")
    with real_server(FakeEngine(), parser, tls_cert=cert, tls_key=key, tls_client_ca=files.ca) as url:
        with ReferenceClient(secured(url), tls=TLS(files.ca, own, own_key), max_wait=0) as client:
            assert client.health()
            assert client.info().model == "fake"
        for tls in (TLS(files.ca), TLS(files.ca, other, other_key)):
            with (
                ReferenceClient(secured(url), tls=tls, max_wait=0) as client,
                pytest.raises(grpo_client.ConnectionFailed),
            ):
                client.info()


def issuer_of(url: str, ca: Path) -> str:
    host, port = url.removeprefix("http://").split(":")
    context = ssl.create_default_context(cafile=str(ca))
    with (
        socket.create_connection((host, int(port)), PATIENCE) as plain,
        context.wrap_socket(plain, server_hostname=host) as wrapped,
    ):
        names = dict(part[0] for part in wrapped.getpeercert()["issuer"])  # type: ignore[index,misc]
        return str(names["organizationName"])


def test_new_certificates_are_taken_up_and_a_broken_pair_is_not(
    files: Files, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cert, key = files.issue("server")
    renewed = Files(tmp_path, "renewed")
    new_cert, new_key = renewed.issue("fresh")
    trusted = ssl.create_default_context(cafile=str(files.ca))
    with (
        real_server(FakeEngine(), tls_cert=cert, tls_key=key) as url,
        httpx.Client(verify=trusted, timeout=PATIENCE) as kept,
    ):
        assert kept.get(f"{secured(url)}/livez").status_code == 200
        assert issuer_of(url, files.ca) == "ca"
        key.write_bytes(new_key.read_bytes())  # it does not belong to the certificate: the old pair stays
        assert issuer_of(url, files.ca) == "ca"
        cert.write_bytes(new_cert.read_bytes())
        for _ in range(10_000):
            try:
                assert issuer_of(url, renewed.ca) == "renewed"
                break
            except ssl.SSLCertVerificationError:
                continue
        else:
            raise AssertionError("the new certificate was never used")
        assert kept.get(f"{secured(url)}/livez").status_code == 200  # an open connection stays


def test_keys_are_asked_for_behind_tls_too(files: Files, tmp_path: Path) -> None:
    cert, key = files.issue("server")
    (tmp_path / "keys").write_text("alpha\n")
    with real_server(FakeEngine(), tls_cert=cert, tls_key=key, api_key_file=tmp_path / "keys") as url:
        with (
            ReferenceClient(secured(url), tls=TLS(files.ca), max_wait=0) as client,
            pytest.raises(grpo_client.NotAuthorized),
        ):
            client.info()
        with ReferenceClient(secured(url), tls=TLS(files.ca), api_key="alpha", max_wait=0) as client:
            assert client.info().model == "fake"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"tls_cert": None}, "tls_cert and tls_key: .*No such file"),
        ({"tls_cert": b"nonsense"}, "tls_cert and tls_key: .*PEM files that belong together"),
        ({"tls_key": b"nonsense"}, "tls_cert and tls_key: .*PEM files that belong together"),
        ({"tls_client_ca": None}, "tls_client_ca: .*No such file"),
        ({"tls_client_ca": b"nonsense"}, "tls_client_ca: .*PEM files"),
    ],
)
def test_files_that_cannot_be_used_are_named(
    files: Files, tmp_path: Path, changed: dict[str, bytes | None], told: str
) -> None:
    cert, key = files.issue("server")
    paths = {"tls_cert": cert, "tls_key": key, "tls_client_ca": files.ca}
    for name, content in changed.items():
        paths[name] = tmp_path / "changed"
        if content is not None:
            paths[name].write_bytes(content)
    with pytest.raises(ValueError, match=told):
        Certificates.load(make_config(**paths))


def test_a_key_of_another_certificate_is_refused(files: Files) -> None:
    cert, _ = files.issue("server")
    _, key = files.issue("other")
    with pytest.raises(ValueError, match="give PEM files that belong together"):
        Certificates.load(make_config(tls_cert=cert, tls_key=key))


def test_an_encrypted_key_is_refused_without_a_question_at_the_terminal(files: Files, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as form

    cert, key = files.issue("server")
    loaded = form.load_pem_private_key(key.read_bytes(), None)
    locked = form.BestAvailableEncryption(b"secret")
    key.write_bytes(loaded.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, locked))
    with pytest.raises(ValueError, match="the private key is encrypted; decrypt it first"):
        Certificates.load(make_config(tls_cert=cert, tls_key=key))
    with pytest.raises(grpo_client.InvalidSetting, match="its private key is encrypted"):
        ReferenceClient("https://localhost", tls=TLS(cert_file=cert, key_file=key), max_wait=0).info()


@pytest.mark.parametrize("flags", [["--tls-key", "k.pem"], ["--tls-client-ca", "ca.pem"]])
def test_tls_needs_a_certificate(flags: list[str]) -> None:
    with pytest.raises(ValueError, match="--tls-cert is not"):
        load_config(["--model", "m", *flags])


def test_what_a_client_cannot_use_is_named(tmp_path: Path) -> None:
    for tls, told in (
        ({"ca_file": tmp_path / "none.pem"}, "ca_file .*No such file"),
        ({"cert_file": tmp_path / "none.pem"}, "cert_file .*No such file"),
    ):
        with pytest.raises(grpo_client.InvalidSetting, match=told):
            ReferenceClient("https://localhost", tls=TLS(**tls), max_wait=0).info()
    with pytest.raises(grpo_client.InvalidSetting, match=r"key_file .* needs cert_file"):
        TLS(key_file="k.pem")
