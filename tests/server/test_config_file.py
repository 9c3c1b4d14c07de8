"""The settings file: what is wrong with it is one sentence, and nothing of it is repeated."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from grpo_server import cli
from grpo_server.config.file import read_config_file

KEY = "planted-0c4d"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.yaml", b"- 1\n", "must hold settings, such as model: demo, and not a list"),
        ("a.yaml", b"words\n", "not a str"),
        ("a.yaml", b"model:\n\tx: 1\n", "is not valid YAML, line 2, column 1"),
        ("a.yml", b"model: a\nport: 1\nmodel: b\n", "line 3, column 1: the key model is there twice"),
        ("a.yaml", b"model: \xe9\n", "is not UTF-8: byte 7 is 0xe9"),
        ("a.yaml", f"api_key: a: {KEY}\n".encode(), "is not valid YAML, line 1, column 11"),
        ("a.yaml", f"api_key: *{KEY}\n".encode(), "found undefined alias$"),
        ("a.yaml", b"port: 2024-99-99\n", "is not valid YAML: ValueError"),
        ("a.yaml", b"[" * 5000, "is not valid YAML: RecursionError"),
        ("a.toml", f"api_key = {KEY}\n".encode(), r"is not valid TOML \(at line 1, column 11\)"),
        ("a.toml", b"model = '\xe9'", "is not UTF-8"),
        ("a.json", b"{}", "ends in '.json'; use a .yaml, .yml or .toml file"),
    ],
)
def test_files_that_are_no_settings(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=says) as caught:
        read_config_file(path)
    assert KEY not in str(caught.value)
    assert caught.value.__cause__ is None


def test_paths_that_are_no_settings(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no file"):
        read_config_file(tmp_path / "missing.yaml")
    (tmp_path / "a.yaml").mkdir()
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        read_config_file(tmp_path / "a.yaml")


def test_an_empty_file_and_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("# nothing\n")
    assert read_config_file(tmp_path / "a.yaml") == {}
    (tmp_path / "a.yaml").write_text("\ufeffmodel: demo\n", encoding="utf-8")
    assert read_config_file(tmp_path / "a.yaml") == {"model": "demo"}
    (tmp_path / "a.toml").write_text("\ufeffmodel = 'demo'\n", encoding="utf-8")
    assert read_config_file(tmp_path / "a.toml") == {"model": "demo"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"model: x\nhost: {{a: {KEY}}}\n", "--host: Input should be a valid string, got a dict"),
        (f"model: x\nport: 'http://me:{KEY}@host'\n", "--port: .*got 'http://\\*\\*\\*@host'"),
        (
            f"model: https://me:{KEY}@host/m\n",
            r"https://\*\*\*@host/m cannot be served: https://\*\*\*@host/m is a URL",
        ),
        (f"model: x\napi_key: [{KEY}]\n", "--api-key: Input should be a valid string"),
        (f"model: x\nadmin_kye: {KEY}\n", "admin_kye is not a setting"),
    ],
)
def test_no_error_of_the_command_repeats_a_secret(
    tmp_path: Path, text: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:

    (tmp_path / "a.yaml").write_text(text)
    assert cli.main(["--config", str(tmp_path / "a.yaml")]) == 2
    said = "".join(capsys.readouterr())
    assert re.search(says, said), said
    assert KEY not in said
