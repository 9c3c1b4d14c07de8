"""Settings: flag over environment over file over default; mistakes told in the words of the flags."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from grpo_server import cli
from grpo_server.config import ServerConfig
from grpo_server.config.sources import load_config
from grpo_server.engine.config import BatchLimits, EngineConfig
from pydantic import ValidationError


@pytest.mark.parametrize(
    ("suffix", "text"),
    [("yaml", "model: from-file\nport: 1\nmode: fast\n"), ("toml", 'model = "from-file"\nport = 1\nmode = "fast"\n')],
)
def test_a_flag_wins_over_environment_over_file_over_default(
    suffix: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / f"server.{suffix}"
    file.write_text(text)
    monkeypatch.setenv("GRPO_SERVER_PORT", "2")
    monkeypatch.setenv("GRPO_SERVER_HOST", "0.0.0.0")
    config = load_config(["--config", str(file), "--host", "::1"])
    assert (config.model, config.port, config.host, config.mode, config.cache_bytes) == (
        "from-file",
        2,
        "::1",
        "fast",
        256 * 2**20,
    )


def test_the_file_may_be_named_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "server.yaml"
    file.write_text("model: from-file")
    monkeypatch.setenv("GRPO_SERVER_CONFIG", str(file))
    assert load_config([]).model == "from-file"


@pytest.mark.parametrize(
    "name",
    ["max_batch_tokens", "max_batch_bytes", "max_queue_tokens", "max_queue_bytes", "max_request_bytes", "cache_bytes"],
)
def test_sizes_may_be_written_as_people_write_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flag = f"--{name.replace('_', '-')}"
    room = ["--model", "demo", *(["--max-queue-tokens", "1G"] if name == "max_batch_tokens" else [])]
    assert getattr(load_config([*room, flag, "64KiB"]), name) == 65_536
    assert getattr(load_config([*room, flag, "65536"]), name) == 65_536
    file = tmp_path / "server.toml"
    file.write_text(f'{name} = "64k"')
    assert getattr(load_config([*room, "--config", str(file)]), name) == 64_000
    monkeypatch.setenv(f"GRPO_SERVER_{name.upper()}", "0.5MiB")
    assert getattr(load_config(room), name) == 524_288
    assert cli.main([*room, flag, "64KiBB"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"{flag}: " in said
    assert "must be a size such as 256MiB" in said


def test_every_setting_is_a_flag_and_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load_config(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for name, setting in ServerConfig.model_fields.items():
        assert setting.description, name
        flag = f"--{name.replace('_', '-')} "
        assert (flag in text) is (name not in ("api_key", "admin_key")), name
    assert "grpo-server --model demo" in text
    assert "tuple[" not in text  # what people type, and not how it is declared
    assert "--port N" in text


def test_the_operators_page_names_every_setting() -> None:
    page = (Path(__file__).parents[2] / "docs" / "server.md").read_text()
    for name in ServerConfig.model_fields:
        flag = f"--{name.replace('_', '-')}"
        assert f"`{flag}`" in page or f"`GRPO_SERVER_{name.upper()}`" in page, name


FLAGS = """
--model m --revision r --dtype float16 --device cuda:1 --device-map auto --mode fast --threads 3 --max-length 9
--trust-remote-code --served-name s --tier plain --max-batch-tokens 5 --max-queue-tokens 6 --cache-bytes 7
"""


def test_settings_reach_engine_and_scheduler() -> None:
    config = load_config(FLAGS.split())
    assert config.engine() == EngineConfig(
        model="m",
        revision="r",
        dtype="float16",
        device="cuda:1",
        device_map="auto",
        mode="fast",
        threads=3,
        max_length=9,
        trust_remote_code=True,
        served_name="s",
        tier="plain",
        max_batch_tokens=5,
    )
    limits = config.scheduler(BatchLimits(5, 99))
    assert (limits.max_batch_tokens, limits.max_batch_bytes) == (5, 99)
    assert (limits.max_queue_tokens, limits.cache_bytes) == (6, 7)


def test_what_a_batch_holds_is_what_the_engine_takes_unless_it_is_said() -> None:
    said = load_config(["--model", "m", "--max-batch-tokens", "100", "--max-batch-bytes", "1KiB"])
    limits = said.scheduler(BatchLimits(32_768, 2**33))
    assert (limits.max_batch_tokens, limits.max_batch_bytes) == (100, 1024)
    for words in ([], ["--max-batch-tokens", "auto", "--max-batch-bytes", "AUTO"]):
        config = load_config(["--model", "m", "--max-queue-tokens", "20k", *words])
        assert (config.max_batch_tokens, config.max_batch_bytes) == (None, None)
        limits = config.scheduler(BatchLimits(32_768, 2**33))
        # a batch that the queue cannot hold would never fill
        assert (limits.max_batch_tokens, limits.max_batch_bytes) == (20_000, 2**33)


def test_another_spelling_of_a_mode_is_told_the_right_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "server.yaml"
    file.write_text("constant_shape: true\n")
    for arguments in (["--constant-shape"], ["--no-constant-shape"], ["--config", str(file)]):
        assert cli.main(["--model", "m", *arguments]) == 2
        assert "use --mode invariant" in capsys.readouterr().err
    monkeypatch.setenv("GRPO_SERVER_CONSTANT_SHAPE", "true")
    assert cli.main(["--model", "m"]) == 2
    assert "use --mode invariant" in capsys.readouterr().err


def test_a_config_does_not_change() -> None:
    with pytest.raises(ValidationError):
        load_config(["--model", "m"]).port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "--model is needed .or GRPO_SERVER_MODEL, or model in the file."),
        (["--model", "m", "--port", "99999"], "--port: .* 65535, got '99999'"),
        (["--model", "m", "--mode", "quick"], "--mode: .* 'exact', 'invariant' or 'fast', got 'quick'"),
        (["--model", "m", "--max-batch-tokens", "0"], "--max-batch-tokens: .*greater than or equal to 1"),
        (["--model", "m", "--drain-timeout", "nan"], "--drain-timeout"),
        (["--model", "m", "--max-batch-tokens", "11", "--max-queue-tokens", "10"], "raise --max-queue-tokens"),
        (["--model", "m", "--config", "nowhere.yaml"], "there is no file nowhere.yaml"),
    ],
)
def test_a_mistake_is_told_in_the_words_of_the_flags(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    assert re.search(told, capsys.readouterr().err)


def test_a_mistake_in_the_file_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "server.yaml"
    file.write_text("model: m\nprot: 80\n")
    assert cli.main(["--config", str(file)]) == 2
    assert "prot is not a setting" in capsys.readouterr().err
    other = tmp_path / "server.ini"
    other.write_text("")
    assert cli.main(["--config", str(other)]) == 2
    assert ".yaml, .yml or .toml" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--nope"], ["--model", "m", "--api-key", "secret"], ["--mod", "m"]])
def test_unknown_flags_and_keys_on_the_command_line_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "grpo-server: error" in capsys.readouterr().err


def test_a_key_file_that_is_missing_stops_the_start(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grpo_server.logs.configure", lambda level, form: None)
    monkeypatch.setattr("grpo_server.engine.environment.set_environment", lambda *_, **__: None)
    assert cli.main(["--model", "m", "--port", "0", "--api-key-file", "nowhere"]) == 2
    assert "api_key_file: cannot read nowhere" in capsys.readouterr().err


def test_reading_settings_needs_no_torch() -> None:
    import subprocess
    import sys

    check = "import sys, grpo_server.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
