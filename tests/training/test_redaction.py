"""Secrets in texts: each place where one stands, and texts in which none does."""

from __future__ import annotations

import json
import logging

import pytest
from grpo_training.config import RolloutConfig, TrainConfig
from grpo_training.redaction import ScrubbingFilter, redacted, redacted_command, scrubbed

KEY = "Zq7planted9secret"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"https://me:{KEY}@host:8000/v1", "https://***@host:8000/v1"),
        (f"https://{KEY}@host", "https://***@host"),
        (f"postgres://me:p@{KEY}@host/db", "postgres://***@host/db"),
        (f"http://host/load?step=3&access_token={KEY}&x=1", "http://host/load?step=3&access_token=***&x=1"),
        (f"Authorization: Bearer {KEY}", "Authorization: ***"),
        (f"{{'Authorization': 'Basic {KEY}'}}", "{'Authorization': '***'}"),
        (f"X-Api-Key: {KEY}", "X-Api-Key: ***"),
        (f"Illegal header value b'Bearer {KEY}\\n'", "Illegal header value b'Bearer ***\\n'"),
        (f'{{"model": "m", "hub_token": "{KEY}"}}', '{"model": "m", "hub_token": "***"}'),
        (f"--api-key={KEY} --port=3", "--api-key=*** --port=3"),
        (f"WANDB_API_KEY={KEY} python x.py", "WANDB_API_KEY=*** python x.py"),
        ("a token hf_abcdefghijklmnopqrst", "a token ***"),
        ("sk-proj-abcdefghijklmnopqrst", "***"),
    ],
)
def test_a_secret_is_known_by_where_it_stands(text: str, shown: str) -> None:
    assert redacted(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:8000",
        "git@host:repo",
        "Question: {question}\nAnswer with one token: the number.",
        "The secret: think before you answer.",
        "max_new_tokens=16",
        "reference.api_key: a key is made of visible characters",  # what our own errors say
        "a basic arithmetic task; bearer of news",
        "runs/mine/checkpoints/step-000050",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redacted(text) == text


def test_nests_and_commands() -> None:
    nest = {
        "kwargs": {"api_key": KEY, "size": 3, "password": None},
        "urls": [f"http://u:{KEY}@h"],
        "api_key_env": "MINE",
    }
    assert redacted(nest) == {
        "kwargs": {"api_key": "***", "size": 3, "password": None},
        "urls": ["http://***@h"],
        "api_key_env": "MINE",
    }
    assert redacted_command(["/usr/bin/curl", "-u", f"me:{KEY}", "{path}"]) == ["/usr/bin/curl", "-u", "***", "{path}"]
    assert redacted_command(["python", "-u", "load.py", "--token", KEY]) == [
        "python",
        "-u",
        "load.py",
        "--token",
        "***",
    ]


def test_the_environments_keys_are_known_by_value(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SOME_TRACKER_KEY", KEY)
    monkeypatch.setenv("SHORT_KEY", "a")
    assert scrubbed(f"a server said {KEY} back") == "a server said *** back"
    record = logging.LogRecord("lib", logging.INFO, __file__, 1, "sent %s", (KEY,), None)
    assert ScrubbingFilter().filter(record)
    assert record.getMessage() == "sent ***"


def test_a_configuration_shows_none(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig.model_validate(
        {
            "task": {"name": "basic_arithmetic"},
            "reference": {"api_key": f" {KEY}\n"},
            "rollout": {
                "backend": "openai",
                "base_url": "http://h",
                "model": "m",
                "sync_every": 1,
                "sync_command": ["curl", "-H", f"Authorization: Bearer {KEY}", "{path}"],
            },
        }
    )
    assert config.reference.api_key is not None
    assert config.reference.api_key.get_secret_value() == KEY
    assert config.rollout.sync_command[2].endswith(KEY)
    for shown in (repr(config), str(config), config.model_dump_json(), json.dumps(config.model_dump(mode="json"))):
        assert KEY not in shown
    # What was written can be trained from again, with the key in the environment.
    assert TrainConfig.model_validate(config.model_dump(mode="json")).reference.api_key is None
    assert RolloutConfig().model_dump(mode="json")["sync_command"] == []
