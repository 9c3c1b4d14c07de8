"""What is asked: TRL's columns as they are, columns under other names, long prompts, and the order of the rows."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from grpo_training.config import ConfigError, TaskConfig
from grpo_training.tasks.task import Task
from pydantic import ValidationError

ASKED = [{"role": "user", "content": "1+1?"}]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_judge.py").write_text("def judge(answer, entry):\n    return 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "own_judge:judge"


def of(
    tokenizer: Any, directory: Path, rows: list[Any], *, limits: dict[str, Any] | None = None, **fields: Any
) -> Task:
    path = directory / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Task(TaskConfig.model_validate({"file": path, **fields}), tokenizer, **(limits or {}))


def test_trls_prompts(tokenizer: Any, tmp_path: Path, own: str) -> None:
    """A text as it is, with no template around it; a conversation through the chat template, also one that is begun."""
    rows = [
        {"prompt": "1+1=", "solution": "2"},
        {"prompt": ASKED, "solution": "2"},
        {"prompt": [{"role": "system", "content": "brief"}, *ASKED], "question": "not this"},
        {"prompt": [*ASKED, {"role": "assistant", "content": "It is"}]},
    ]
    task = of(tokenizer, tmp_path, rows, reward=own, shuffle=False, system="kind")
    texts = [p.prompt_text for p in task.problems(0, 4, 0)]
    assert texts[:3] == [
        "1+1=",
        "system:kind\nuser:1+1?\nassistant:",
        "system:brief\nuser:1+1?\nassistant:",
    ]
    assert texts[3].startswith("system:kind\nuser:1+1?\nassistant:It is")
    plain, talk, *_ = task.problems(0, 4, 0)
    assert plain.prompt == "1+1="
    assert talk.prompt == [{"role": "system", "content": "kind"}, *ASKED]
    assert task.judge(talk, "2").correct is None  # there is no answer to compare with


def test_columns_under_other_names(tokenizer: Any, tmp_path: Path) -> None:
    columns = {"question": "problem", "answer": "solution"}
    task = of(tokenizer, tmp_path, [{"problem": "1+1?", "solution": 2, "prompt": 7}], columns=columns, chat=False)
    [problem] = task.problems(0, 1, 0)
    assert problem.prompt_text == "1+1?"
    assert task.judge(problem, "2").reward == 1.0
    with pytest.raises(ConfigError, match=r"line 1 has no problem, which task\.columns names for question"):
        of(tokenizer, tmp_path, [{"question": "a", "solution": 2}], columns=columns)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": []}, "prompt is a list, and must be"),
        ({"prompt": 7}, "prompt is a number"),
        ({"prompt": ["hi"]}, r"prompt\[0\] must be a turn"),
        ({"prompt": [{"content": "hi"}]}, r"prompt\[0\] must be a turn"),
        ({"prompt": [*ASKED, {"role": "user", "content": [{"type": "image"}]}]}, r"prompt\[1\]\.content is a list"),
        ({"completion": "x"}, "no question, and no prompt"),
    ],
)
def test_a_prompt_that_cannot_be_asked_is_named(
    tokenizer: Any, tmp_path: Path, own: str, row: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=rf"data\.jsonl line 2:? .*{says}"):
        of(tokenizer, tmp_path, [{"prompt": "fine"}, row], reward=own)


def test_an_answer_is_needed_where_one_is_compared(tokenizer: Any, tmp_path: Path, own: str) -> None:
    for fields in ({}, {"rewards": {"a": own, "b": "graded"}}):
        with pytest.raises(ConfigError, match=r"line 1 needs .*no answer, with which exact and graded compare"):
            of(tokenizer, tmp_path, [{"prompt": "1+1="}], **fields)


LONG = [{"prompt": "abcdefgh"[:n]} for n in (3, 8, 4, 7)]


@pytest.mark.parametrize("as_turns", [False, True])
def test_long_prompts(
    tokenizer: Any, tmp_path: Path, own: str, caplog: pytest.LogCaptureFixture, as_turns: bool
) -> None:
    rows = [{"prompt": [{"role": "user", "content": r["prompt"]}]} if as_turns else r for r in LONG]
    around = len("user:\nassistant:") if as_turns else 0
    with pytest.raises(ConfigError, match=rf"line 2: a prompt has {8 + around} tokens, allowed are 1 to {4 + around}"):
        of(tokenizer, tmp_path, rows, reward=own, limits={"max_prompt_tokens": 4 + around})
    limits = {"max_prompt_tokens": 4 + around, "long_prompts": "filter"}
    with caplog.at_level(logging.WARNING):
        task = of(tokenizer, tmp_path, rows, reward=own, shuffle=False, limits=limits)
    assert (
        f"2 of 4 prompts have more than rollout.max_prompt_tokens={4 + around} tokens and are left out" in caplog.text
    )
    assert len(task) == 2
    assert [p.where[-1] for p in task.problems(0, 3, 0)] == ["1", "3", "1"]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        task = of(tokenizer, tmp_path, rows, reward=own, shuffle=False, limits=limits | {"long_prompts": "cut"})
    assert f"are cut to their last {4 + around}, the first task.file" in caplog.text
    ids = [p.prompt_ids for p in task.problems(0, 4, 0)]
    assert [len(i) - around for i in ids] == [3, 4, 4, 4]
    assert tokenizer.decode(ids[1]).replace(" ", "").endswith("assistant:" if as_turns else "efgh")
    with pytest.raises(ConfigError, match="all 4 prompts have more than"):
        of(tokenizer, tmp_path, rows, reward=own, limits={"max_prompt_tokens": 1, "long_prompts": "filter"})


def test_long_prompts_of_a_procedural_dataset(tokenizer: Any) -> None:
    kwargs = {"min_terms": 1, "max_terms": 9, "size": 40, "seed": 1}
    config = TaskConfig(name="chain_sum", kwargs=kwargs, chat=False)
    lengths = [len(p.prompt_ids) for p in Task(config, tokenizer).problems(0, 40, 0)]
    limit = sorted(lengths)[20]
    task = Task(config, tokenizer, max_prompt_tokens=limit, long_prompts="filter")
    assert len(task) == sum(n <= limit for n in lengths) < 40


def test_an_order_for_a_curriculum(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"question": f"{i}?", "answer": i} for i in range(5)]
    in_order = of(tokenizer, tmp_path, rows, chat=False, shuffle=False)
    asked = [p.prompt_text for step in range(3) for p in in_order.problems(step, 2, 7)]
    assert asked == ["0?", "1?", "2?", "3?", "4?", "0?"]
    shuffled = of(tokenizer, tmp_path, rows, chat=False)
    assert [p.prompt_text for p in shuffled.problems(0, 5, 7)] != asked[:5]


def test_one_source() -> None:
    for fields in ({"file": "a", "dataset": "b"}, {}, {"name": "chain_sum", "dataset": "b"}):
        with pytest.raises(ValidationError, match="give one of name"):
            TaskConfig.model_validate(fields)
    with pytest.raises(ValidationError, match="reasoning-gym has its own"):
        TaskConfig.model_validate({"name": "chain_sum", "columns": {"question": "q"}})
