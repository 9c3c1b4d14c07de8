"""Evaluation on held-out questions: the figures, its independence of training, and what a resume does with it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from grpo_training.config import ConfigError, ModelConfig, TrainConfig
from grpo_training.distributed import World
from grpo_training.models.loading import load_model
from grpo_training.report.metrics import read_records
from grpo_training.rollouts.generation import sample
from grpo_training.rollouts.policy import Policy
from grpo_training.rollouts.sampling import PolicySampler
from grpo_training.run.evaluation import Evaluator, held_out_tasks
from grpo_training.run.loop import train
from grpo_training.run.progress import Display
from grpo_training.run.step import StepReport, step_seed
from grpo_training.tasks.task import Task
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import LlamaForCausalLM

MakeConfig = Callable[..., TrainConfig]
ALONE = {"beta": 0.0}


class Killed(Exception):
    """Stands for kill -9."""


class KillAfter:
    def __init__(self, step: int) -> None:
        self.step = step

    def started(self, config: TrainConfig, first_step: int, reference: str | None) -> None: ...

    def evaluated(self, done: int, figures: dict[str, float]) -> None: ...

    def stepped(self, step: int, report: StepReport) -> None:
        if step == self.step:
            raise Killed

    def saved(self, path: Path) -> None: ...


def evaluations(config: TrainConfig) -> list[dict[str, Any]]:
    """Without what depends on the clock."""
    return [
        {k: v for k, v in record.items() if not k.startswith("time/")}
        for record in read_records(config.trainer.output / "eval.jsonl")
    ]


def test_greedy_takes_the_likeliest_token(tiny: LlamaForCausalLM) -> None:
    prompts = [[5, 6, 7], [8]]
    rollout = sample(tiny, prompts, group_size=1, max_new_tokens=7, temperature=0, eos_ids=frozenset(), seed=0)
    for prompt, [made] in zip(prompts, rollout.completions(), strict=True):
        ids = list(prompt)
        for token in made:
            logits = tiny(torch.tensor([ids])).logits[0, -1]
            assert token == int(logits.argmax())
            ids.append(token)


def test_the_figures_are_those_of_the_answers(make_config: MakeConfig, tiny_path: Path) -> None:
    config = make_config(eval={"every": 1, "prompts": 20, "completions": 3, "temperature": 0.7, "max_new_tokens": 5})
    loaded = load_model(ModelConfig(name=str(tiny_path), device="cpu"))
    tasks = held_out_tasks(config)
    alone = World("single", 0, 1, None)
    policy = Policy(loaded.model)
    figures = Evaluator(config, tasks, PolicySampler(config, loaded, policy, alone)).figures()
    # Naively: five prompts of three answers at a time, as many rows as a training step has (4 x 4, rounded down).
    task = Task(tasks["held_out"], loaded.tokenizer)
    problems = task.problems(0, 20, config.eval.seed)
    again = Evaluator(config, tasks, PolicySampler(config, loaded, policy, alone)).figures()
    assert {k: v for k, v in again.items() if k != "time/eval_s"} == {
        k: v for k, v in figures.items() if k != "time/eval_s"
    }
    rewards, lengths = [], []
    for start in range(0, 20, 5):
        rollout = sample(
            loaded.model,
            [p.prompt_ids for p in problems[start : start + 5]],
            group_size=3,
            max_new_tokens=5,
            temperature=0.7,
            eos_ids=loaded.eos_ids,
            seed=step_seed(config.eval.seed, start),
        )
        for problem, group in zip(problems[start : start + 5], rollout.completions(), strict=True):
            rewards += [task.judge(problem, loaded.tokenizer.decode(c, skip_special_tokens=True)).reward for c in group]
            lengths += [len(c) for c in group]
    assert figures["eval/held_out/reward"] == pytest.approx(sum(rewards) / 60)
    assert figures["eval/held_out/length"] == pytest.approx(sum(lengths) / 60)


def test_a_run_with_evaluations_learns_what_one_without_learns(make_config: MakeConfig, tmp_path: Path) -> None:
    with_, without = (
        make_config(
            loss=ALONE,
            eval={"every": every, "prompts": 8},
            trainer={"steps": 3, "tensorboard": True, "output": str(tmp_path / f"every{every}")},
        )
        for every in (2, 0)
    )
    out = io.StringIO()
    with Display(Console(file=out, width=160)) as display:
        summary = train(with_, observer=display)
    train(without)
    found = evaluations(with_)
    assert [r["step"] for r in found] == [0, 2, 3]
    assert found[0].keys() == {"step", *(f"eval/held_out/{n}" for n in ("reward", "correct", "length", "ended"))}
    assert summary["eval"]["held_out"]["reward_last"] == found[-1]["eval/held_out/reward"]
    assert "evaluation after step 2  held_out/reward" in out.getvalue()
    assert "held out: held_out" in (with_.trainer.output / "report.html").read_text()
    events = EventAccumulator(str(with_.trainer.output / "tensorboard" / "eval"))
    events.Reload()
    assert [e.step for e in events.Scalars("eval/held_out/reward")] == [0, 2, 3]
    ours, theirs = (read_records(c.trainer.output / "metrics.jsonl") for c in (with_, without))
    for a, b in zip(ours, theirs, strict=True):
        assert {k: v for k, v in a.items() if "time/" not in k} == {k: v for k, v in b.items() if "time/" not in k}
    assert not (without.trainer.output / "eval.jsonl").exists()


@pytest.mark.parametrize("killed_in", [2, 3])
def test_a_killed_run_goes_on_with_the_same_evaluations(
    make_config: MakeConfig, tmp_path: Path, killed_in: int
) -> None:
    def config(name: str) -> TrainConfig:
        return make_config(
            loss=ALONE,
            eval={"every": 1, "prompts": 8, "temperature": 1.0},
            trainer={"steps": 4, "checkpoint_every": 2, "tensorboard": True, "output": str(tmp_path / name)},
        )

    train(config("calm"))
    with pytest.raises(Killed):
        train(config("killed"), observer=KillAfter(killed_in))
    train(config("killed"), resume=True)
    assert [r["step"] for r in evaluations(config("calm"))] == [0, 1, 2, 3, 4]
    assert evaluations(config("killed")) == evaluations(config("calm"))
    events = EventAccumulator(str(tmp_path / "killed" / "tensorboard" / "eval"))
    events.Reload()
    assert [e.step for e in events.Scalars("eval/held_out/reward")] == [0, 1, 2, 3, 4]


def test_several_tasks_by_name(make_config: MakeConfig, tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps({"question": f"{i}?", "answer": str(i)}) + "\n" for i in range(9)))
    sums = {"name": "chain_sum", "kwargs": {"size": 30}, "chat": False}
    config = make_config(
        loss=ALONE,
        eval={"every": 1, "prompts": 9, "tasks": {"sums": sums, "file": {"file": str(questions), "chat": False}}},
        trainer={"steps": 1},
    )
    train(config)
    assert {key.split("/")[1] for key in evaluations(config)[0] if key != "step"} == {"sums", "file"}


def test_what_is_held_out_is_held_out(make_config: MakeConfig) -> None:
    config = make_config(eval={"every": 1})
    anew = held_out_tasks(config)["held_out"]
    assert anew.kwargs == {**config.task.kwargs, "seed": config.eval.seed}
    assert held_out_tasks(make_config()) == {}
    same = {"name": "basic_arithmetic", "kwargs": dict(config.task.kwargs)}
    with pytest.raises(ConfigError, match=r"eval\.task asks the very questions"):
        held_out_tasks(make_config(eval={"every": 1, "task": same}))
    with pytest.raises(ConfigError, match=r"eval\.tasks\.a asks the very questions"):
        held_out_tasks(make_config(eval={"every": 1, "tasks": {"a": same}}))
    with pytest.raises(ConfigError, match="has only 50 questions"):
        train(make_config(loss=ALONE, eval={"every": 1, "prompts": 51}, trainer={"steps": 1}))
