"""docs/training.md: the settings that it shows are settings, and its functions do what it says of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from grpo_training.config import load_config

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
EXAMPLE = yaml.safe_load((ROOT / "examples" / "arithmetic.yaml").read_text(encoding="utf-8"))

# Fenced, or indented and beginning with a section.
FENCED = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
PROSE = re.sub(r"^```.*?^```", "", PAGE, flags=re.DOTALL | re.MULTILINE)
INDENTED = [b for b in re.findall(r"^((?: {4}[^\n]*\n)+)", PROSE, re.MULTILINE) if re.match(r" +[a-z]+:[ \n]", b)]
SNIPPETS = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", [*FENCED, *INDENTED], ids=lambda block: block.split(":")[0].strip())
def test_the_settings_it_shows_are_taken(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = yaml.safe_load(block)
    settings = EXAMPLE | {name: EXAMPLE.get(name, {}) | section for name, section in given.items()}
    if "rewards" in given.get("task", {}):
        del settings["task"]["reward"]
    if "sync_command" in given.get("rollout", {}):  # what is shown stands under "Rollouts from a server"
        settings["rollout"] |= {"backend": "openai", "base_url": "http://gpu-host:30000", "model": "m"}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert load_config(path)


def test_its_reward_functions() -> None:
    names: dict[str, Any] = {}
    [snippet] = [s for s in SNIPPETS if "my_rewards.py" in s]
    exec(snippet, names)
    assert names["closeness"]("12", {"answer": "11"}) == 0.5
    assert names["closeness"](None, {"answer": "11"}) == 0.0
    assert names["brevity"](["abc", "d"], [False, True], answer=["1", "2"]) == [0.25, None]


def test_its_environment() -> None:
    names: dict[str, Any] = {"compute": lambda text: "42"}
    [snippet] = [s for s in SNIPPETS if "calculator.py" in s]
    exec(snippet, names)
    calculator = names["Calculator"]()
    assert calculator.reset({}) is None
    assert [calculator.step("6 * 7"), calculator.step("42")] == ["Result: 42\nAnswer:", None]
