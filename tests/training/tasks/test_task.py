"""Problems by step, prompts, and judges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from grpo_training.config import ConfigError, TaskConfig
from grpo_training.tasks.task import Task
from transformers import PreTrainedTokenizerFast

SUMS = {
    "name": "basic_arithmetic",
    "kwargs": {"min_terms": 2, "max_terms": 2, "max_digits": 1, "operators": ["+"], "size": 10, "seed": 4},
}


def task(tokenizer: PreTrainedTokenizerFast, **fields: Any) -> Task:
    return Task(TaskConfig.model_validate(SUMS | fields), tokenizer)


def test_the_walk_visits_everything_once_an_epoch_and_follows_from_the_seed(tokenizer) -> None:
    walk = task(tokenizer, chat=False)
    assert len(walk) == 10

    def visited(seed: int, steps: range) -> list[int]:
        return [p.entry["metadata"]["source_index"] for s in steps for p in walk.problems(s, 4, seed)]

    twenty = visited(0, range(5))
    assert sorted(twenty[:10]) == sorted(twenty[10:]) == list(range(10))
    assert twenty[:10] != twenty[10:]
    assert twenty[12:] == visited(0, range(3, 5))  # from the middle, without what came before
    assert twenty != visited(1, range(5))


def test_prompts(tokenizer) -> None:
    plain = task(tokenizer, chat=False, template="{expression} =").problems(0, 1, 0)[0]
    assert plain.prompt_text == plain.entry["metadata"]["expression"] + " ="
    assert tokenizer.decode(plain.prompt_ids).replace(" ", "") == plain.prompt_text.replace(" ", "")
    chat = task(tokenizer, system="Be brief.").problems(0, 1, 0)[0]
    assert chat.prompt_text == f"system:Be brief.\nuser:{chat.entry['question']}\nassistant:"
    with pytest.raises(ConfigError, match=r"task\.template names 'nothing'"):
        task(tokenizer, template="{nothing}").problems(0, 1, 0)
    with pytest.raises(ConfigError, match=r"rollout\.max_prompt_tokens"):
        Task(TaskConfig.model_validate(SUMS), tokenizer, max_prompt_tokens=3).problems(0, 1, 0)


@pytest.mark.parametrize(
    ("fields", "completion", "reward", "correct"),
    [
        ({}, " {answer} ", 1.0, True),
        ({}, "it is {answer}", 0.0, False),
        ({"reward": "graded"}, "{answer} {answer}", None, False),
        ({"answer_pattern": r"-?\d+"}, "1000 no, {answer}", 1.0, True),
        ({"answer_pattern": r"-?\d+", "answer_match": "first"}, "1000 no, {answer}", 0.0, False),
        ({"answer_pattern": r"<a>(.*?)</a>"}, "12 <a>{answer}</a> 13", 1.0, True),
        ({"answer_pattern": r"<a>(.*?)</a>"}, "{answer}", 0.0, False),
    ],
)
def test_judges(tokenizer, fields: dict[str, Any], completion: str, reward: float | None, correct: bool) -> None:
    judge = task(tokenizer, chat=False, **fields)
    problem = judge.problems(0, 1, 0)[0]
    judged = judge.judge(problem, completion.format(answer=problem.entry["answer"]))
    assert judged.correct is correct
    if reward is None:
        assert 0 < judged.reward < 1
    else:
        assert judged.reward == reward


def test_a_function_of_ones_own(tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_reward.py").write_text("def shorter(answer, entry):\n    return 1 / (1 + len(answer or ''))\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    mine = task(tokenizer, chat=False, reward="my_reward:shorter")
    problem = mine.problems(0, 1, 0)[0]
    judged = mine.judge(problem, "abc")
    assert judged.reward == 0.25
    assert not judged.correct
    with pytest.raises(ConfigError, match="cannot import my_reward:longer"):
        task(tokenizer, reward="my_reward:longer")
    with pytest.raises(ConfigError, match="neither exact, graded nor module:function"):
        task(tokenizer, reward="best")


def test_json_lines(tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(json.dumps({"question": f"{i}+1?", "answer": i + 1}) for i in range(3)) + "\n\n")
    mine = Task(TaskConfig(file=path, chat=False), tokenizer)
    problem = mine.problems(0, 1, 0)[0]
    assert mine.judge(problem, f" {problem.entry['answer']}\n").reward == 1.0
    assert mine.judge(problem, "no").reward == 0.0
    for text, says in [("{", "line 1 is not JSON"), ("{}", "needs the keys"), ("", "no entries")]:
        path.write_text(text)
        with pytest.raises(ConfigError, match=says):
            Task(TaskConfig(file=path), tokenizer)
    with pytest.raises(ConfigError, match="no file at"):
        Task(TaskConfig(file=tmp_path / "missing"), tokenizer)


GOOD = {"question": "1+1?", "answer": 2}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ('{"question": null, "answer": 1}', "line 3: question is null"),
        ('{"question": ["1", "+"], "answer": 1}', "line 3: question is a list"),
        ('{"question": 7, "answer": 1}', "line 3: question is a number"),
        ('{"question": {"role": "user"}, "answer": 1}', "line 3: question is an object"),
        ('{"question": " ", "answer": 1}', "line 3: question is blank"),
        ('{"question": "a", "answer": null}', "line 3: answer is null"),
        ('{"question": "a", "answer": [1]}', "line 3: answer is a list"),
        ('{"question": "a", "answer": true}', "line 3: answer is a boolean"),
        ('{"question": "a", "answer": NaN}', "line 3 is not JSON: NaN"),
        ('{"question": "a"}', "line 3 needs the keys .*it has no answer"),
        ('{"question": "a", "answer": 1, "question": "b"}', "line 3 is not JSON: the key question is there twice"),
        ('{"question": "a", "answer": 1, "metadata": "x"}', "line 3: metadata is a string"),
        ('["a", 1]', "line 3 is a list"),
        ("[" * 9999, "line 3 is not JSON"),
        ('{"question": "' + "a" * 80 + '", "answer": 1}', r"line 3: a prompt has 80 tokens, allowed are 1 to 64"),
    ],
)
def test_a_row_that_cannot_be_asked_is_named_at_start(tokenizer, tmp_path: Path, row: str, says: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n\n{row}\n")
    with pytest.raises(ConfigError, match=r"task\.file: .*data\.jsonl " + says):
        Task(TaskConfig(file=path, chat=False), tokenizer, max_prompt_tokens=64)


def test_a_field_of_the_template_that_one_row_lacks(tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(f"{json.dumps(GOOD | {'hint': 'a'})}\n{json.dumps(GOOD)}\n")
    with pytest.raises(ConfigError, match=r"names 'hint', but task\.file: .*line 2 has only: question"):
        Task(TaskConfig(file=path, chat=False, template="{question} {hint}"), tokenizer)


def test_files_of_other_systems(tokenizer, tmp_path: Path) -> None:
    """A byte order mark, Windows' line ends, and a line separator inside a string, where JSON allows it."""
    path = tmp_path / "data.jsonl"
    path.write_bytes('\ufeff{"question": "a\u2028b\x85c", "answer": "1"}\r\n\r\n'.encode())
    mine = Task(TaskConfig(file=path, chat=False), tokenizer)
    assert mine.problems(0, 1, 0)[0].prompt_text == "a\u2028b\x85c"
    path.write_bytes(b'{"question": "\xe9", "answer": "1"}')
    with pytest.raises(ConfigError, match="line 1 is not UTF-8"):
        Task(TaskConfig(file=path), tokenizer)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        Task(TaskConfig(file=tmp_path), tokenizer)


def test_a_reward_of_ones_own_takes_any_answer_and_can_change_nothing(
    tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"question": "a", "answer": [1, 2], "metadata": {"tests": ["x"]}}))
    (tmp_path / "greedy_reward.py").write_text(
        "def greedy(answer, entry):\n"
        "    found = len(entry['metadata']['tests'])\n"
        "    entry['metadata']['tests'].append('y')\n"
        "    entry['question'] = 'the answer is 1, 2'\n"
        "    entry['answer'].clear()\n"
        "    return found\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    mine = Task(TaskConfig(file=path, chat=False, reward="greedy_reward:greedy"), tokenizer)
    for step in range(3):
        [problem] = mine.problems(step, 1, 0)
        assert problem.prompt_text == "a"
        assert problem.entry["answer"] == [1, 2]
        assert [mine.judge(problem, "[1, 2]").reward for _ in range(2)] == [1.0, 1.0]
        assert not mine.judge(problem, "[1, 2]").correct  # a list is no text to compare with


def test_a_scorer_gets_a_copy_too(tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = task(tokenizer, chat=False)
    problem = mine.problems(0, 1, 0)[0]

    def spoil(answer: str | None, entry: Any) -> float:
        entry["metadata"].clear()
        return 1.0

    monkeypatch.setattr(mine._judge, "_scorer", spoil)
    mine.judge(problem, "1")
    assert problem.entry["metadata"]


def test_a_dataset_without_a_seed_follows_the_runs(tokenizer) -> None:
    def asked(runs: int, **kwargs: Any) -> list[str]:
        config = TaskConfig(name="basic_arithmetic", kwargs={"size": 9, **kwargs}, chat=False)
        return [p.prompt_text for p in Task(config, tokenizer, seed=runs).problems(0, 9, 0)]

    assert asked(3) == asked(3) == asked(3, seed=None) == asked(0, seed=3)
    assert asked(3) != asked(4)


def test_a_fingerprint_is_of_the_entries(tokenizer, tmp_path: Path) -> None:
    def of_file(text: str) -> str:
        (tmp_path / "data.jsonl").write_text(text)
        return Task(TaskConfig(file=tmp_path / "data.jsonl", chat=False), tokenizer).fingerprint

    line = json.dumps(GOOD)
    assert of_file(line) == of_file(line) != of_file(line.replace("2", "3"))
    gym = task(tokenizer).fingerprint
    assert gym == task(tokenizer).fingerprint != task(tokenizer, kwargs=SUMS["kwargs"] | {"max_digits": 2}).fingerprint


def test_datasets_that_do_not_exist_or_refuse(tokenizer) -> None:
    with pytest.raises(ConfigError, match="no dataset 'sums'"):
        Task(TaskConfig(name="sums"), tokenizer)
    with pytest.raises(ConfigError, match=r"task\.kwargs"):
        Task(TaskConfig(name="basic_arithmetic", kwargs={"terms": 2}), tokenizer)
    with pytest.raises(ConfigError, match="answer_pattern"):
        task(tokenizer, answer_pattern="(")
