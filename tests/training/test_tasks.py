"""Problems by step, prompts, and judges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from grpo_training.config import ConfigError, TaskConfig
from grpo_training.tasks import Task
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


def test_datasets_that_do_not_exist_or_refuse(tokenizer) -> None:
    with pytest.raises(ConfigError, match="no dataset 'sums'"):
        Task(TaskConfig(name="sums"), tokenizer)
    with pytest.raises(ConfigError, match=r"task\.kwargs"):
        Task(TaskConfig(name="basic_arithmetic", kwargs={"terms": 2}), tokenizer)
    with pytest.raises(ConfigError, match="answer_pattern"):
        task(tokenizer, answer_pattern="(")
