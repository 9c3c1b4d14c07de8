"""Keys as bytes: whatever an editor left in the file, and however a client writes the header."""

from __future__ import annotations

from pathlib import Path

import pytest
from grpo_server.middleware.key_gate import Keys
from grpo_server.middleware.keys import bearer_of
from server_fakes import FakeEngine, make_config, real_server, serving

BODY = {"groups": [{"prompt": [1], "completions": [[2]]}]}


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfalpha\nbeta\n",
        b"\xef\xbb\xbf# a comment\r\nalpha\r\n\r\n  beta  \r\n",
        b"\xef\xbb\xbf\xef\xbb\xbfalpha\nbeta",
        b"alpha\n\tbeta\n#gamma",
    ],
    ids=["BOM", "BOM and CRLF", "two BOMs", "plain"],
)
def test_a_file_gives_its_keys_whatever_the_editor_added(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    assert Keys.load(make_config(api_key_file=path)).api == (b"alpha", b"beta")


def test_only_a_line_break_divides_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("a\u2028b\nc\x85d\n", encoding="utf-8")
    assert Keys.load(make_config(api_key_file=path)).api == ("a\u2028b".encode(), "c\x85d".encode())


def test_a_byte_order_mark_in_the_environment_is_no_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_SERVER_API_KEY", "\ufeffalpha\n")
    assert Keys.load(make_config()).api == (b"alpha",)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("alpha".encode("utf-16"), "is not UTF-8 text"),
        ("clé".encode("latin-1"), "is not UTF-8 text"),
        (b"al\x00pha\n", "line 1 .* control character"),
        (b"\xef\xbb\xbf", "holds no key"),
    ],
    ids=["UTF-16", "latin-1", "NUL", "BOM alone"],
)
def test_a_file_that_gives_no_key_stops_the_start_and_shows_none(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"api_key_file: .*{told}") as caught:
        Keys.load(make_config(api_key_file=path))
    assert "pha" not in str(caught.value)


@pytest.mark.parametrize(
    ("header", "key"),
    [
        (None, None),
        ("", None),
        ("alpha", None),
        ("Bearer", None),
        ("Bearer ", None),
        ("Basic alpha", None),
        ("bearer  alpha ", b"alpha"),
        ("Bearer al pha", b"al pha"),
        ("Bearer clé".encode().decode("latin-1"), "clé".encode()),
        ("Bearer clé", "clé".encode()),
        ("Bearer voilà".encode().decode("latin-1"), "voilà".encode()),  # its last byte is latin-1's no-break space
        ("Bearer 密钥".encode().decode("latin-1"), "密钥".encode()),
    ],
)
def test_the_bearer_of_a_header_is_the_bytes_of_utf8(header: str | None, key: bytes | None) -> None:
    assert bearer_of(header) == key


@pytest.mark.anyio
@pytest.mark.parametrize("key", ["clé-voilà", "密钥", "schlüssel"])
async def test_a_key_that_is_not_ascii_opens_however_it_is_written(
    engine: FakeEngine, tmp_path: Path, key: str
) -> None:
    path = tmp_path / "keys"
    path.write_text(key, encoding="utf-8-sig")
    spellings = [key.encode()] + ([key.encode("latin-1")] if key.isascii() or max(key) < "\u0100" else [])
    async with serving(engine, api_key_file=path) as client:
        for sent in spellings:
            response = await client.post("/v1/logprobs", json=BODY, headers={"Authorization": b"Bearer " + sent})
            assert response.status_code == 200, sent
        wrong = await client.post("/v1/logprobs", json=BODY, headers={"Authorization": b"Bearer \xff\xfe"})
    assert wrong.status_code == 401


def test_such_a_key_passes_a_real_socket(tmp_path: Path) -> None:
    import httpx

    path = tmp_path / "keys"
    path.write_text("clé", encoding="utf-8-sig")
    with real_server(FakeEngine(), api_key_file=path) as url:
        for sent in ("clé".encode(), "clé".encode("latin-1")):
            response = httpx.post(f"{url}/v1/logprobs", json=BODY, headers={"Authorization": b"Bearer " + sent})
            assert response.status_code == 200
