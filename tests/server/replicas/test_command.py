"""`grpo-server --ray` where Ray is not installed."""

from __future__ import annotations

import sys

import pytest
from grpo_server import cli, logs


def test_the_extra_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(logs, "configure", lambda level, format: None)
    with pytest.raises(SystemExit, match=r"--ray needs the extra `ray`.*pip install 'grpo-refserver\[ray\]'"):
        cli.main(["--ray", "--model", "demo"])


def test_settings_of_replicas_are_read_as_all_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--ray", "--model", "demo", "--replicas", "3", "--max-replicas", "2"]) == cli.EXIT_USAGE
    assert "max_replicas (2) is below replicas (3)" in capsys.readouterr().err
