"""Tables and the OpenAPI document in docs/ are what the code says, and say it in full."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import pytest
from grpo_server.config import SECRETS, ServerConfig
from grpo_training.config import TrainConfig

from tools import write_docs


@pytest.mark.parametrize("path", write_docs.contents(), ids=lambda path: str(path.relative_to(write_docs.DOCS)))
def test_a_page_is_what_the_code_says(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == write_docs.contents()[path], "run make generate"


def test_every_setting_is_in_a_table() -> None:
    rows = write_docs.table("grpo-server")
    for name in ServerConfig.model_fields.keys() - SECRETS:
        assert f"| `--{name.replace('_', '-')}` |" in rows, name
    page = (write_docs.DOCS / "training.md").read_text(encoding="utf-8")
    for section in TrainConfig.model_fields:
        assert f"<!-- table: grpo-train {section} -->" in page, section


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("grpo-server", "| `--max-queue-bytes` | size | 1 GiB |"),
        ("grpo-server", "| `--max-batch-bytes` | size, `auto` | `auto` |"),
        ("grpo-server", "| `--trust-remote-code` | yes or no | off |"),
        ("grpo-server", "| `--model` | text, list | needed |"),
        ("grpo-server", "| `--mode` | `auto`, `exact`, `invariant`, `fast` | `auto` |"),
        ("grpo-train optimizer", "| `lr` | number | 1e-05 |"),
        ("grpo-train optimizer", "| `betas` | 2 numbers | `0.9`, `0.99` |"),
        ("grpo-train optimizer.orthograd", "| `enabled` | yes or no | `false` |"),
        ("grpo-train lora", "| `target_modules` | `all-linear`, list | `all-linear` |"),
        ("grpo-train reference", "| `urls` | list | `http://127.0.0.1:8000` |"),
        ("routes", "| `POST` | `/v1/logprobs` |"),
    ],
)
def test_a_row_says_what_may_stand_there_and_what_stands_there(name: str, row: str) -> None:
    assert row in write_docs.table(name)


def test_every_route_says_what_it_does() -> None:
    silent = [line for line in write_docs.table("routes").splitlines() if line.endswith("|  |")]
    assert not silent


def test_a_bar_in_a_description_does_not_end_its_cell() -> None:
    assert write_docs.cells("a", "b | c\nd") == "| a | b \\| c d |"


def test_a_table_of_a_section_that_is_not_there_is_an_error() -> None:
    with pytest.raises(KeyError, match="nothing"):
        write_docs.table("grpo-train nothing")


def test_the_document_says_which_release_it_is_of() -> None:
    document = json.loads(write_docs.OPENAPI.read_text(encoding="utf-8"))
    assert document["info"]["version"] == version("grpo-refserver")


def test_check_names_what_is_stale_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "docs/page.md"
    page.parent.mkdir()
    page.write_text("<!-- table: grpo-train distributed -->\nold\n<!-- end of table -->\n")
    monkeypatch.setattr(write_docs, "ROOT", tmp_path)
    monkeypatch.setattr(write_docs, "DOCS", page.parent)
    monkeypatch.setattr(write_docs, "OPENAPI", page.with_name("openapi.json"))
    assert write_docs.main(["--check"]) == 1
    assert "docs/page.md" in capsys.readouterr().err
    assert "old" in page.read_text()
    assert write_docs.main([]) == 0
    assert "| `strategy` |" in page.read_text()
    assert write_docs.main(["--check"]) == 0
