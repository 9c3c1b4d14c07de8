"""The clients bring a model to a real server, over connections that break."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from grpo_client import (
    AsyncReferenceClient,
    InvalidSetting,
    NotAuthorized,
    NotFound,
    ReferenceClient,
    uploading,
)
from grpo_client.cli import app
from grpo_server.uploading import receiving
from server_fakes import fingerprint, real_server
from typer.testing import CliRunner
from uploaded_models import WEIGHTS, WeightsEngine, model

TEXT = "0123456789" * 50_000
PIECE = 100_000


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_SERVER_ADMIN_KEY", "root")
    monkeypatch.setattr(uploading, "PIECE_BYTES", PIECE)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (path := tmp_path / "checkpoint").mkdir()
    for name, data in {**model(TEXT), "optimizer.pt": b"pickle", "modeling.py": b"code", "README.md": b""}.items():
        (path / name).write_bytes(data)
    return path


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with real_server(WeightsEngine("first"), upload_dir=tmp_path / "up") as url:
        yield url


class Broken(httpx.HTTPTransport):
    """Cuts the connection in the middle of these PUTs, loses the answers of those, and flips a byte of these."""

    def __init__(self, cut: tuple[int, ...] = (), lost: tuple[int, ...] = (), flipped: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.cut, self.lost, self.flipped = cut, lost, flipped
        self.puts = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if request.method != "PUT":
            return super().handle_request(request)
        self.puts += 1
        body = request.read()
        if self.puts in self.cut:

            def half() -> Iterator[bytes]:
                yield body[: len(body) // 2]
                raise httpx.WriteError("cut")

            super().handle_request(httpx.Request("PUT", request.url, headers=request.headers, content=half()))
        if self.puts in self.flipped:
            body = bytes([body[0] ^ 1]) + body[1:]
            request = httpx.Request("PUT", request.url, headers=request.headers, content=body)
        response = super().handle_request(request)
        if self.puts in self.lost:
            response.read()
            raise httpx.ReadError("lost")
        return response


def bytes_written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    seen: list[int] = []
    write_all = receiving._write_all  # pyright: ignore[reportPrivateUsage]

    def counted(file: int, data: Any) -> None:
        seen.append(len(data))
        write_all(file, data)

    monkeypatch.setattr(receiving, "_write_all", counted)
    return seen


def test_a_model_is_brought_and_hosted(url: str, checkpoint: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    with ReferenceClient(url, fingerprint="first") as client:
        client.info()
        name = client.upload(checkpoint, admin_key="root", on_progress=lambda *bytes: told.append(bytes))
        assert client.move(name, admin_key="root").fingerprint == fingerprint(TEXT)
        assert client.info().version == 2
    total = len(TEXT) + 2
    assert told[0] == (0, total)
    assert told[-1] == (total, total)
    assert told == sorted(told)
    assert len(told) == 1 + 1 + len(TEXT) // PIECE
    files = tmp_path / "up" / name.removeprefix("upload:") / "files"
    assert {p.name for p in files.iterdir()} == {"config.json", WEIGHTS}


def test_asyncio_does_the_same(url: str, checkpoint: Path) -> None:
    async def go() -> str:
        async with AsyncReferenceClient(url, api_key="root") as client:
            name = await client.upload([checkpoint / "config.json", checkpoint / WEIGHTS])
            return (await client.move(name)).fingerprint

    assert asyncio.run(go()) == fingerprint(TEXT)


def test_cut_and_lost_pieces_are_gone_on_from_and_no_byte_is_written_twice(
    url: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = bytes_written(monkeypatch)
    transport = Broken(cut=(2, 3, 6), lost=(1, 5))
    with ReferenceClient(url, api_key="root", transport=transport, sleep=lambda seconds: None) as client:
        name = client.upload(checkpoint)
        assert client.move(name).fingerprint == fingerprint(TEXT)
    assert sum(written) == len(TEXT) + 2


def test_an_upload_that_was_given_up_goes_on_with_the_next_call(url: str, checkpoint: Path) -> None:
    told: list[int] = []
    with (
        ReferenceClient(url, api_key="root", max_wait=0, transport=Broken(lost=(3, 4))) as client,
        pytest.raises(OSError, match="lost"),
    ):
        client.upload(checkpoint, on_progress=lambda there, total: told.append(there))
    assert told[-1] > PIECE
    with ReferenceClient(url, api_key="root") as client:
        went_on: list[int] = []
        client.upload(checkpoint, on_progress=lambda there, total: went_on.append(there))
    assert went_on[0] >= told[-1]


def test_a_piece_with_a_flipped_byte_is_brought_again(url: str, checkpoint: Path) -> None:
    transport = Broken(flipped=(3, 4))
    with ReferenceClient(url, api_key="root", transport=transport, sleep=lambda seconds: None) as client:
        assert client.move(client.upload(checkpoint)).fingerprint == fingerprint(TEXT)
    assert transport.puts == 2 + 1 + len(TEXT) // PIECE


def test_what_is_refused(url: str, checkpoint: Path, tmp_path: Path) -> None:
    with ReferenceClient(url) as client:
        with pytest.raises(NotAuthorized):
            client.upload(checkpoint)
        with pytest.raises(InvalidSetting, match=r"optimizer\.pt cannot be uploaded"):
            client.upload([checkpoint / WEIGHTS, checkpoint / "config.json", checkpoint / "optimizer.pt"])
        with pytest.raises(InvalidSetting, match="is no directory"):
            client.upload(tmp_path / "none")
        (checkpoint / WEIGHTS).unlink()
        with pytest.raises(InvalidSetting, match=r"has a config\.json and \*\.safetensors"):
            client.upload(checkpoint)


def test_a_server_without_a_directory_says_so(checkpoint: Path) -> None:
    with (
        real_server(WeightsEngine("first")) as url,
        ReferenceClient(url, api_key="root") as client,
        pytest.raises(NotFound, match="--upload-dir"),
    ):
        client.upload(checkpoint)


def test_the_command_prints_what_to_host(url: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_ADMIN_KEY", "root")
    ended = CliRunner().invoke(app, ["upload", str(checkpoint), "--url", url])
    assert ended.exit_code == 0, ended.output
    with ReferenceClient(url, api_key="root") as client:
        assert client.move(ended.stdout.strip()).fingerprint == fingerprint(TEXT)
