"""`grpo-server keys`: keys that open, files that stay whole."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from grpo_server.access.key_file import digest_of, read_entries
from grpo_server.cli import main
from key_files import sha256

NAMES = pytest.mark.parametrize("name", ["keys.yaml", "keys.yml", "keys.toml"])


@NAMES
def test_new_adds_an_entry_that_holds_no_key(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    path = tmp_path / name
    keys: list[str] = []
    for holder, scopes in (("a", ["score"]), ("b", ["admin", "metrics"])):
        assert main(["keys", "new", holder, "--file", str(path), "--scopes", *scopes]) == 0
        keys.append(capsys.readouterr().out.strip())
    entries = read_entries(path)
    assert [(e.name, e.scopes) for e, _ in entries] == [("a", {"score"}), ("b", {"admin", "metrics"})]
    assert [digests for _, digests in entries] == [[digest_of(key.encode())] for key in keys]
    assert keys[0] != keys[1]
    assert all(len(key) > 40 and key.isascii() for key in keys)
    assert not any(key in path.read_text() for key in keys)
    assert path.stat().st_mode & 0o077 == 0
    assert [*tmp_path.iterdir()] == [path]


def test_new_without_a_file_prints_what_may_become_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "new", "a"]) == 0
    out = capsys.readouterr().out
    path = tmp_path / "keys.yaml"
    path.write_text(out)
    [(_, [digest])] = read_entries(path)
    key = next(line for line in out.splitlines() if line.startswith("# grpo_")).removeprefix("# ")
    assert digest == digest_of(key.encode())


@pytest.mark.parametrize("name", ["a b", "", "x" * 64, "k\n- name: y"])
def test_a_name_that_cannot_be_a_label_is_refused(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert main(["keys", "new", name]) == 2
    assert capsys.readouterr().err.startswith("grpo-server keys: keys_file: ")


def test_a_file_that_does_not_take_the_entry_stays_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "keys.yaml"
    for text in ("keys:\n  - {name: a, key: some-key}\n", "keys: [{name: b, key: some-key}]\n", "nonsense\n"):
        path.write_text(text)
        assert main(["keys", "new", "a", "--file", str(path)]) == 2
        assert path.read_text() == text
        assert str(path) in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == [path]


def test_hash_and_check(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("some-key\n"))
    assert main(["keys", "hash"]) == 0
    assert capsys.readouterr().out.strip() == sha256("some-key")
    path = tmp_path / "keys.yaml"
    path.write_text("keys:\n  - {name: a, key: some-key, tokens_per_minute: 1k, priority: low}\n")
    assert main(["keys", "check", str(path)]) == 0
    out = capsys.readouterr().out
    assert out == "a: score; low priority; tokens_per_minute 1000; 1 key\n"
    assert main(["keys", "check", str(tmp_path / "none.yaml")]) == 2
