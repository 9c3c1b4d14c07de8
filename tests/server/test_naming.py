"""NAME=SOURCE, on the command line, in the environment and in a file."""

from __future__ import annotations

from pathlib import Path

import pytest
from grpo_server.config import ServerConfig
from grpo_server.config.sources import load_config
from grpo_server.naming import Named, read_adapter, read_named
from pydantic import ValidationError


def named(*argv: str) -> list[tuple[str | None, str]]:
    return [(one.name, one.source) for one in load_config(argv).references]


def test_the_flag_is_given_once_for_each() -> None:
    assert named("--model", "sft=/models/sft", "--model=big=org/big") == [("sft", "/models/sft"), ("big", "org/big")]
    assert named("--model", "demo", "--served-name", "ours") == [("ours", "demo")]
    assert named("--model", "/a,b/c") == [(None, "/a,b/c")]
    assert named("--model", "p=/a,b/c", "--model", "q=/d") == [("p", "/a,b/c"), ("q", "/d")]


def test_a_further_one_needs_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    for further in ("/b", "./b", "here"):
        with pytest.raises(ValidationError, match=f"NAME={further}"):
            named("--model", "a=/x", "--model", further)
    with pytest.raises(ValidationError, match="NAME=/b"):
        ServerConfig(model=("/x", "/b"))  # pyright: ignore[reportCallIssue]
    Path("odd,").mkdir()
    Path("odd,/b").mkdir()
    assert named("--model", "a=odd,/b") == [("a", "odd,/b")]
    Path("lr=3,").mkdir()
    Path("lr=3,/b").mkdir()
    assert named("--model", "lr=3,/b") == [(None, "lr=3,/b")]


@pytest.mark.parametrize("value", ["a=/x,b=/y", '["a=/x", "b=/y"]'])
def test_the_environment_holds_them_in_one_variable(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("GRPO_SERVER_MODEL", value)
    assert named() == [("a", "/x"), ("b", "/y")]
    monkeypatch.setenv("GRPO_SERVER_ADAPTER", "l=/q,m=/r@b")
    assert load_config(()).references[2:] == (Named("/q", "l", ""), Named("/r", "m", "b"))


@pytest.mark.parametrize("text", ["model: {a: /x, b: org/y}", "model: [a=/x, b=org/y]"])
def test_a_file_has_a_list_or_a_mapping(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    assert named("--config", str(tmp_path / "c.yaml")) == [("a", "/x"), ("b", "org/y")]


def test_a_path_that_is_there_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_named("lr=3") == Named("3", "lr")
    Path("lr=3").mkdir()
    assert read_named("lr=3") == Named("lr=3")
    assert read_named("runs/lr=3") == Named("runs/lr=3")


def test_what_follows_an_at_is_a_base_only_if_there_is_one() -> None:
    names = frozenset({"big"})
    assert read_adapter("l=/a@big", names) == Named("/a", "l", "big")
    assert read_adapter("l=/a@2024", names) == Named("/a@2024", "l", "")
    with pytest.raises(ValueError, match="NAME=PATH"):
        read_adapter("/a", names)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": ("a=/x", "a=/y")}, "the name a is there twice"),
        ({"model": ("a=/x", "b=/y"), "adapter": ("a=/z",)}, "the name a is there twice"),
        ({"model": "a=/x", "served_name": "b"}, "has a name already"),
        ({"model": ("a=/x", "b=/y"), "tensor_parallel": True}, "hosts one model"),
        ({"model": ()}, "one at least"),
        ({"model": ""}, "NAME=MODEL"),
        ({"model": 5}, "NAME=MODEL"),
        ({"model": f"{'n' * 101}=/x"}, "longer than 100"),
    ],
)
def test_what_does_not_fit_together_is_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ServerConfig(**settings)  # pyright: ignore[reportArgumentType]
