"""The story of docs/debugging.md on a model of NumPy: each planted bug is found by the rule that the page names."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from grpo_client.findings import Verdict, check_samples, read_samples

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "client" / "findings"))

from toy_rollouts import END, Toy, prompt_of  # noqa: E402  # beside the tests of the rules


@pytest.fixture
def story(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example, which is no installed package."""
    monkeypatch.syspath_prepend(ROOT)
    import examples.planted_bugs

    return examples.planted_bugs


class ToyPolicy:
    """What `Policy` does with a model, without one."""

    def __init__(self, story: ModuleType) -> None:
        self.end_ids = [END]
        self._story, self._toy, self._rng = story, Toy(), np.random.default_rng(0)

    def groups(self, prompts: Sequence[str], temperature: float) -> list[Any]:
        made = []
        for _ in prompts:
            content = self._rng.integers(40, 400, size=6).tolist()
            prompt = prompt_of(content)
            completions = [self._toy.sample(prompt, self._rng, temperature) for _ in range(self._story.OF)]
            made.append(self._story.Group(prompt, prompt[8:-2], completions))
        return made

    def logprobs(self, group: Any, temperature: float = 1.0) -> list[torch.Tensor]:
        rows = [self._toy.logprobs(group.prompt, ids, temperature)[0] for ids in group.completions]
        return [torch.tensor(row, dtype=torch.float32) for row in rows]

    def learn(self, groups: Sequence[Any], steps: int, rate: float) -> None:
        self._toy = Toy(seed=5, sharp=2.5)


class ToyReference:
    """What a client does with a server, without one."""

    def score(self, prompts: Any, completions: Any, *, extras: Sequence[str]) -> Any:
        assert list(extras) == ["entropy"]
        toy = Toy()
        groups = [
            [
                SimpleNamespace(logprobs=r.astype(np.float32), extras={"entropy": h.astype(np.float32)})
                for r, h in (toy.logprobs(prompt, ids) for ids in of)
            ]
            for prompt, of in zip(prompts, completions, strict=True)
        ]
        return SimpleNamespace(reference=SimpleNamespace(fingerprint="f" * 64), groups=lambda: groups)


def test_each_bug_is_found_by_its_rule_and_the_healthy_run_by_none(story: ModuleType, tmp_path: Path) -> None:
    story.plant(ToyPolicy(story), ToyReference(), tmp_path, ["a question"] * 24)
    assert {run.name for run in tmp_path.iterdir()} == set(story.BUGS)
    for name, bug in story.BUGS.items():
        findings = check_samples(read_samples(tmp_path / name / "samples.jsonl"))
        checked = {f.name for f in findings if f.verdict is Verdict.CHECK}
        assert (bug.finds in checked) if bug.finds else not checked, (name, checked)


def test_the_page_names_each_bug_and_the_rule_that_finds_it(story: ModuleType) -> None:
    rows = [line.split(" | ") for line in (ROOT / "docs" / "debugging.md").read_text().splitlines()]
    table = {row[0].strip("| `"): row[1:3] for row in rows if len(row) == 4}
    for name, bug in story.BUGS.items():
        assert table[name] == [bug.title, f"`{bug.finds}`" if bug.finds else "nothing fires"]


def test_a_log_prob_is_written_as_the_shortest_number_that_is_the_same(story: ModuleType) -> None:
    row = torch.tensor([-0.1, -1e-9, 0.0])
    assert story.short(row) == [-0.1, -1e-9, 0.0]
    assert torch.equal(torch.tensor(story.short(row.bfloat16())), row.bfloat16().float())
