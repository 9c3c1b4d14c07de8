"""Reward functions as people have them: of one completion or of all, asynchronous, in processes, with a time limit."""

from __future__ import annotations

import logging
import math
import os
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from grpo_training.config import ConfigError, RewardError, TaskConfig
from grpo_training.tasks.calling import Completion, Signature
from grpo_training.tasks.task import Task
from pydantic import ValidationError

ROWS = '{"question": "1+1?", "answer": "2", "hint": "even"}\n{"question": "1+2?", "answer": "3", "hint": "odd"}\n'
MakeTask = Callable[..., Task]


@pytest.fixture
def make_task(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeTask]:
    """`make_task("def f(answer, entry): ...", rewards={"f": {"weight": 2}}, on_error="abstain")`."""
    made: list[Task] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "data.jsonl").write_text(ROWS)

    def make(source: str, rewards: dict[str, dict[str, Any]], **fields: Any) -> Task:
        module = f"rewards_{uuid.uuid4().hex}"
        (tmp_path / f"{module}.py").write_text(source)
        named = {name: {"function": f"{module}:{name}", **more} for name, more in rewards.items()}
        config = TaskConfig.model_validate({"file": tmp_path / "data.jsonl", "chat": False, "rewards": named, **fields})
        made.append(Task(config, tokenizer))
        return made[-1]

    yield make
    for task in made:
        task.close()


def completions(task: Task, texts: list[str], *, truncated: bool = False) -> list[Completion]:
    """Two of each problem, in the file's order."""
    problems = sorted(task.problems(0, 2, 0), key=lambda p: p.where)
    return [
        Completion(problems[i // 2], text, list(text.encode()), f"{text}</s>", truncated)
        for i, text in enumerate(texts)
    ]


def parts(task: Task, texts: list[str], **more: Any) -> list[tuple[float, ...]]:
    return [j.parts for j in task.judge_all(completions(task, texts, **more)).judged]


def test_a_function_is_given_what_its_parameters_name(make_task: MakeTask) -> None:
    source = """
def scorer(answer, entry): return float(answer == entry["answer"])
def positional(a, e): return len(a) + len(e["hint"])
def details(completion, completion_ids, raw_completion, truncated, prompt, *, unused=1):
    return len(completion) + 10 * len(completion_ids) + 100 * len(raw_completion) + 1000 * truncated + 10000 * len(prompt)
def columns(prompts, completions, completion_ids, hint, answer, **rest):
    assert prompts == ["1+1?", "1+1?", "1+2?", "1+2?"]
    assert sorted(rest) == ["question", "raw_completions", "trainer_state", "truncated"]
    assert rest["trainer_state"].global_step == 0
    return [float(c == a) + len(h) for c, a, h in zip(completions, answer, hint)]
def few(completions): return [None if c == "4" else 0.5 for c in completions]
"""
    task = make_task(source, {"scorer": {}, "positional": {}, "details": {}, "columns": {}, "few": {}})
    assert task.reward_names == ("scorer", "positional", "details", "columns", "few")
    given = parts(task, ["2", "44", "3", "4"], truncated=True)
    assert given[0] == (1.0, 5, 1 + 10 + 500 + 1000 + 40000, 5.0, 0.5)
    assert given[1] == (0.0, 6, 2 + 20 + 600 + 1000 + 40000, 4.0, 0.5)
    assert given[2][:4] == (1.0, 4, 41511, 4.0)
    assert math.isnan(given[3][4])


def test_a_conversation_comes_as_trl_has_it(make_task: MakeTask) -> None:
    source = """
def turns(prompts, completions, **_):
    assert prompts[0] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "1+1?"}]
    return [len(c[0]["content"]) if c[0]["role"] == "assistant" else None for c in completions]
"""
    task = make_task(source, {"turns": {}}, chat=True, system="be brief")
    assert parts(task, ["a", "bb", "ccc", ""]) == [(1,), (2,), (3,), (0,)]


def test_the_reward_is_the_weighted_sum_of_those_that_did_not_abstain(make_task: MakeTask) -> None:
    source = """
def one(answer, entry): return 1.0 if answer != "x" else None
def two(completions, **_): return [None if c in ("x", "y") else 0.5 for c in completions]
"""
    task = make_task(source, {"one": {"weight": 2}, "two": {"weight": -1}})
    rewards = [j.reward for j in task.judge_all(completions(task, ["a", "y", "x", "b"])).judged]
    assert rewards[:2] == [1.5, 2.0]
    assert math.isnan(rewards[2])
    assert rewards[3] == 1.5


ASYNC = """
import asyncio
under_way, most = 0, 0
async def slow(answer, entry):
    global under_way, most
    under_way += 1
    most = max(most, under_way)
    await asyncio.sleep(0)
    under_way -= 1
    return float(most)
async def all_at_once(prompts, completions, **_): return [len(c) for c in completions]
class Judge:
    def __init__(self, bonus): self.bonus = bonus
    async def __call__(self, completions, **_): return [self.bonus] * len(completions)
async def never(answer, entry):
    if answer == "hang":
        await asyncio.Event().wait()
    return 1.0
"""


def test_coroutines_run_side_by_side(make_task: MakeTask) -> None:
    rewards = {"slow": {}, "all_at_once": {}, "Judge": {"arguments": {"bonus": 0.25}}}
    given = parts(make_task(ASYNC, rewards), ["a", "bb", "c", "d"])
    assert given[-1][0] == 4.0
    assert [p[1:] for p in given] == [(1, 0.25), (2, 0.25), (1, 0.25), (1, 0.25)]
    limited = make_task(ASYNC, {"slow": {"workers": 2}})
    assert {p[0] for p in parts(limited, ["a", "b", "c", "d"])} <= {1.0, 2.0}
    again = parts(limited, ["a", "b", "c", "d"])  # the same loop, on the next step
    assert len(again) == 4


def test_a_coroutine_that_hangs_costs_its_own_call(make_task: MakeTask, caplog: pytest.LogCaptureFixture) -> None:
    task = make_task(ASYNC, {"never": {"timeout": 0.05}}, on_error="value", error_value=-1.0)
    with caplog.at_level(logging.WARNING):
        judgement = task.judge_all(completions(task, ["a", "hang", "b", "c"]), when="step 3")
    assert [j.reward for j in judgement.judged] == [1.0, -1.0, 1.0, 1.0]
    assert judgement.errors == {"never": 1}
    [said] = caplog.messages
    assert "step 3: the reward" in said
    assert "failed for 1 of 4 completions (rewarded with -1), the first for task.file:" in said
    assert "line 1: it took longer than 0.05 s" in said


PROCESSES = """
import os, time
def who(answer, entry): return os.getpid()
def hangs(answer, entry):
    while answer == "hang":
        time.sleep(0.01)
    return 1.0
def dies(answer, entry):
    if answer == "die":
        os._exit(3)
    return 1.0
def strange(answer, entry): return (lambda: 1) if answer == "a" else 1.0
def many(prompts, completions, **_): return [len(set(prompts))] * len(completions)
"""


def test_processes_of_their_own(make_task: MakeTask) -> None:
    task = make_task(PROCESSES, {"who": {"workers": 2}, "many": {"workers": 2}})
    first, second = parts(task, ["a", "b", "c", "d"]), parts(task, ["a", "b", "c", "d"])
    pids = {p[0] for p in first + second}
    assert os.getpid() not in pids
    assert 1 <= len(pids) <= 2  # they stay from step to step
    assert {p[1] for p in first} == {1}  # a group stays together


@pytest.mark.parametrize(
    ("function", "text", "why"),
    [
        ("hangs", "hang", r"it took longer than 0\.3 s"),
        ("dies", "die", "its process ended with status 3"),
        ("strange", "a", "Can't pickle|cannot pickle|Can't get local object|PicklingError|AttributeError"),
    ],
)
def test_a_process_that_fails_costs_its_own_call(
    make_task: MakeTask, caplog: pytest.LogCaptureFixture, function: str, text: str, why: str
) -> None:
    task = make_task(PROCESSES, {function: {"workers": 1, "timeout": 0.3}}, on_error="abstain")
    with caplog.at_level(logging.WARNING):
        given = parts(task, ["1", text, "2", "3"])
    assert math.isnan(given[1][0])
    assert [p[0] for p in (given[0], given[2], given[3])] == [1.0, 1.0, 1.0]
    assert re.search(why, caplog.text)


FAILING = """
def fails(answer, entry):
    if entry["hint"] == "odd": raise KeyError("no such thing")
    return 1.0
def short(completions, **_): return [1.0]
def nothing(completions, **_): return None
def asks(completions, colour): return [1.0] * len(completions)
"""


def test_an_error_names_function_and_row(make_task: MakeTask) -> None:
    task = make_task(FAILING, {"fails": {}})
    with pytest.raises(
        RewardError, match=r":fails failed for task\.file: .*line 2: KeyError: 'no such thing'.*on_error"
    ):
        parts(task, ["a", "b", "c", "d"])
    for name, why in (
        ("short", "it gave 1 rewards for 4 completions"),
        ("nothing", "it gave no list for 4 completions"),
        ("asks", "TypeError: asks.. missing 1 required positional argument: 'colour'"),
    ):
        with pytest.raises(RewardError, match=rf":{name} failed for .*line 1: {why}"):
            parts(make_task(FAILING, {name: {}}), ["a", "b", "c", "d"])


def test_one_functions_rule_can_be_its_own(make_task: MakeTask) -> None:
    rewards = {"fails": {"on_error": "value", "error_value": 0.5}, "short": {"on_error": "abstain"}}
    given = parts(make_task(FAILING, rewards), ["a", "b", "c", "d"])
    assert [p[0] for p in given] == [1.0, 1.0, 0.5, 0.5]
    assert all(math.isnan(p[1]) for p in given)


def test_reasoning_gyms_scorers(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"question": "1+1?", "answer": "2", "metadata": {}}\n')
    config = TaskConfig(file=tmp_path / "data.jsonl", chat=False, reward="reasoning_gym:chain_sum")
    task = Task(config, tokenizer)
    problem = task.problems(0, 1, 0)[0]
    assert task.judge(problem, "2").reward == 1.0
    assert task.judge(problem, "3").reward < 1.0
    with pytest.raises(ConfigError, match=r"task\.reward: .*no_such_set"):
        Task(config.model_copy(update={"reward": "reasoning_gym:no_such_set"}), tokenizer)


def test_what_cannot_be_called_is_refused_at_start() -> None:
    with pytest.raises(ConfigError, match=r"f takes \(text\): a reward function takes \(answer, entry\)"):
        Signature.of(lambda text: 1.0, "f")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"reward": "mine:score", "rewards": {"a": "exact"}}, "either reward"),
        ({"rewards": {"a b": "exact"}}, "part of a metric's name"),
        ({"rewards": {"mean": "exact"}}, "name of a figure"),
        ({"rewards": {"a": {"function": "exact", "timeout": 1}}}, "functions of your own"),
        ({"rewards": {"a": {"function": "m:f", "weight": math.nan}}}, "finite"),
        ({"on_error": "ignore"}, "raise"),
    ],
)
def test_settings_that_make_no_sense(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        TaskConfig.model_validate({"name": "basic_arithmetic", **fields})
