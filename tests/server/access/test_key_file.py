"""The file of named keys: what it may say, and that a fault is told by place and never by key."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from grpo_server.access.key_file import MOST_KEYS, read_entries
from grpo_server.scheduler.accounts import AccountLimits
from key_files import entry, sha256

SECRET = "a-secret-of-some-length"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "keys.yaml",
            f"keys:\n  - name: a\n    key: {SECRET}\n    scopes: [score, admin]\n    tokens_per_minute: 2M\n"
            "    max_queue_tokens: 1Ki\n    priority: low\n  - {name: b, hash: [HASH, OTHER]}\n",
        ),
        (
            "keys.toml",
            f'[[keys]]\nname = "a"\nkey = "{SECRET}"\nscopes = ["score", "admin"]\ntokens_per_minute = "2M"\n'
            'max_queue_tokens = 1024\npriority = "low"\n[[keys]]\nname = "b"\nhash = ["HASH", "OTHER"]\n',
        ),
    ],
)
def test_yaml_and_toml_say_the_same(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text.replace("HASH", sha256("one")).replace("OTHER", sha256("two")))
    [(a, a_digests), (b, b_digests)] = read_entries(path)
    assert (a.name, a.scopes) == ("a", {"score", "admin"})
    assert a.limits == AccountLimits(2_000_000, 1024, "low")
    assert a_digests == [hashlib.sha256(SECRET.encode()).digest()]
    assert (b.name, b.scopes, b.limits) == ("b", {"score"}, AccountLimits())
    assert b_digests == [hashlib.sha256(key).digest() for key in (b"one", b"two")]
    assert SECRET not in repr(a)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "keys: Field required"),
        ("keys: []\n", "keys: List should have at least 1 item"),
        ("- a\n", "must hold named entries"),
        ("keys: [\n", "not valid YAML, line"),
        (f"keys:\n  - {{name: a, key: {SECRET}}}\nother: 1\n", "other: Extra inputs"),
        (
            f"keys:\n  - {{name: a, key: {SECRET}, scope: [score]}}\n",
            r"keys\[0\].scope \(a\): Extra .* has name, key or",
        ),
        ("keys:\n  - {name: a}\n", r"keys\[0\] \(a\): .*neither key nor hash"),
        ("keys:\n  - {name: a, hash: abc}\n", r"keys\[0\].hash\[0\] \(a\): .*64 hexadecimal"),
        ("keys:\n  - {name: a, key: 123456789012}\n", r"keys\[0\].key\[0\] \(a\): .*put quotes"),
        (f"keys:\n  - {{name: 'a b', key: {SECRET}}}\n", r"keys\[0\].name: .*letters, digits"),
        (f"keys:\n  - {{name: a, key: {SECRET}, scopes: []}}\n", r"keys\[0\].scopes \(a\): .*at least 1"),
        (f"keys:\n  - {{name: a, key: {SECRET}, scopes: [all]}}\n", r"keys\[0\].scopes.* \(a\): .*'score', 'admin'"),
        (f"keys:\n  - {{name: a, key: {SECRET}, tokens_per_minute: -1}}\n", r"tokens_per_minute \(a\): "),
        (f"keys:\n  - {{name: a, key: {SECRET}, priority: top}}\n", r"keys\[0\].priority \(a\): .*'high'"),
        ('keys:\n  - {name: a, key: "secret\\0of"}\n', "a holds a control character"),
        (f"keys:\n  - {{name: a, key: {SECRET}}}\n  - {{name: a, key: other-one}}\n", "the name a is there twice"),
        (f"keys:\n  - {{name: a, key: {SECRET}}}\n  - {{name: b, key: {SECRET}}}\n", "a and b have a key in common"),
        (f"keys:\n  - {{name: a, key: x, name: {SECRET}}}\n", "the key name is there twice"),
    ],
)
def test_a_fault_is_named_by_its_place_and_shows_no_key(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"^keys_file: (?s:.*){told}") as caught:
        read_entries(path)
    assert "secret" not in str(caught.value)
    assert "123456789012" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_holds_so_many_keys_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text("keys:\n" + "".join(entry(f"k{i}", f"key-{i}") for i in range(MOST_KEYS)))
    assert len(read_entries(path)) == MOST_KEYS
    path.write_text(path.read_text() + entry("one-more", "one-more"))
    with pytest.raises(ValueError, match=f"at most {MOST_KEYS}"):
        read_entries(path)


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"keys_file: there is no file .*none\.yaml"):
        read_entries(tmp_path / "none.yaml")
