"""How the policy does on questions that it is not trained on, at intervals of the run.

An evaluation is a pure function of the weights: the same questions every time and, with a temperature, the same random
numbers, all from `eval.seed`. So two evaluations differ by what was learned in between, nothing has to be remembered for
a resume, and training goes the same way with or without. Answers are sampled from the trained weights in this process,
wherever the rollouts come from.

`eval.jsonl` has a record for each, its step being the number of steps done; `tensorboard/eval` the same figures.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Protocol, Self

from grpo_training.config import ConfigError, TaskConfig, TrainConfig
from grpo_training.report.metrics import EVALUATIONS, JsonLines, TensorBoard, Tracker, read_records
from grpo_training.rollouts.rollout import Rollout
from grpo_training.rollouts.sampling import Drawing, PolicySampler
from grpo_training.run.figures import mean_of_known
from grpo_training.run.step import step_seed
from grpo_training.run.texts import completed
from grpo_training.tasks.task import Judged, Problem, Task

ONLY_TASK = "held_out"


class EvaluationObserver(Protocol):
    def evaluated(self, done: int, figures: dict[str, float]) -> None: ...


def held_out_tasks(config: TrainConfig) -> dict[str, TaskConfig]:
    """The tasks by name, with the seeds that make their questions others than training's.

    A reasoning-gym dataset without a seed of its own gets eval.seed. Raises ConfigError for a task whose questions are
    those of the training task.
    """
    options = config.eval
    if not options.every:
        return {}
    chosen = options.tasks or {ONLY_TASK: options.task or _drawn_anew(config)}
    tasks = {name: _seeded(task, options.seed) for name, task in chosen.items()}
    for name, task in tasks.items():
        if _source(task) == _source(config.task):
            field = f"eval.tasks.{name}" if options.tasks else "eval.task"
            raise ConfigError(
                f"{field} asks the very questions that are trained on: give it another kwargs.seed (or leave that out: "
                f"then it is eval.seed), or another file"
            )
    return tasks


class Evaluator:
    """Asks the policy the questions of every task."""

    def __init__(
        self,
        config: TrainConfig,
        tasks: Mapping[str, TaskConfig],
        sampler: PolicySampler,
    ) -> None:
        """sampler: of the trained weights. Raises ConfigError when a task has fewer questions than eval.prompts."""
        self._config = config
        self._sampler = sampler
        self._problems: dict[str, tuple[Task, list[Problem]]] = {}
        options = config.eval
        for name, source in tasks.items():
            task = Task(
                source,
                sampler.loaded.tokenizer,
                max_prompt_tokens=config.rollout.max_prompt_tokens,
                long_prompts=config.rollout.long_prompts,
                seed=options.seed,
            )
            if len(task) < options.prompts:
                raise ConfigError(
                    f"eval.prompts={options.prompts}, but {name} has only {len(task)} questions: ask for fewer, or give "
                    f"the dataset a larger size"
                )
            self._problems[name] = task, task.problems(0, options.prompts, options.seed)

    def close(self) -> None:
        """End what the tasks' reward functions run in."""
        for task, _ in self._problems.values():
            task.close()

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of the entries of each task, under `eval.<name>`."""
        return {f"eval.{name}": task.fingerprint for name, (task, _) in self._problems.items()}

    def figures(self) -> dict[str, float]:
        """Of each task `eval/<name>/reward`, `correct`, `length` (tokens) and `ended` (share); and `time/eval_s`.

        The reward is the mean of those that are known, NaN where none is.
        """
        started = time.perf_counter()
        found: dict[str, float] = {}
        for name, (task, problems) in self._problems.items():
            judged, lengths, ended = self._answers(task, problems)
            found |= {
                f"eval/{name}/reward": mean_of_known([j.reward for j in judged]),
                f"eval/{name}/correct": mean_of_known([math.nan if j.correct is None else j.correct for j in judged]),
                f"eval/{name}/length": sum(lengths) / len(lengths),
                f"eval/{name}/ended": sum(ended) / len(ended),
            }
        return found | {"time/eval_s": time.perf_counter() - started}

    def _answers(self, task: Task, problems: Sequence[Problem]) -> tuple[list[Judged], list[int], list[bool]]:
        options, rollout = self._config.eval, self._config.rollout
        # As many rows at once as a training step samples: what fits there fits here.
        at_once = max(1, rollout.prompts_per_step * rollout.group_size // options.completions)
        judged: list[Judged] = []
        lengths: list[int] = []
        ended: list[bool] = []
        for start in range(0, len(problems), at_once):
            asked = problems[start : start + at_once]
            answers = self._sampled(asked, step_seed(options.seed, start))
            judged += task.judge_all(
                completed(self._sampler.loaded.tokenizer, asked, answers), when="evaluation"
            ).judged
            lengths += answers.lengths.tolist()
            ended += answers.ended.tolist()
        return judged, lengths, ended

    def _sampled(self, asked: Sequence[Problem], seed: int) -> Rollout:
        """Every process samples all the answers: FSDP2 has the whole weights together only when all take part."""
        options, rollout = self._config.eval, self._config.rollout
        drawing = Drawing(
            group_size=options.completions,
            max_new_tokens=options.max_new_tokens or rollout.max_new_tokens,
            temperature=options.temperature,
            total=len(asked) * options.completions,
        )
        return self._sampler.draw([p.prompt_ids for p in asked], drawing, seed=seed, asked=asked)


class EvaluationLog:
    """When to evaluate, and where the figures go. A context manager."""

    def __init__(self, config: TrainConfig, first_step: int, *, writes: bool = True) -> None:
        """first_step: steps done when this part of the run begins; records of later ones are dropped. writes: False for
        a process that only computes along."""
        self._every = config.eval.every
        self._last = config.trainer.steps
        self._trackers: list[Tracker] = []
        self._done: set[int] = set()
        if not self._every:
            return
        keep = first_step + 1 if first_step else 0  # a new run begins with nothing
        path = config.trainer.output / EVALUATIONS
        if keep and path.exists():
            self._done = {step for record in read_records(path) if (step := int(record["step"])) < keep}
        if not writes:
            return
        self._trackers.append(JsonLines(path, first_step=keep))
        if config.trainer.tensorboard:
            self._trackers.append(TensorBoard(config.trainer.output / "tensorboard" / "eval", first_step=keep))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for tracker in self._trackers:
            tracker.close()

    @property
    def done(self) -> list[int]:
        """The steps whose evaluation an earlier part of the run has left."""
        return sorted(self._done)

    def after(self, done: int, evaluator: Evaluator, observer: EvaluationObserver | None) -> None:
        """`done` steps are behind the run: evaluate if it is time and has not been done (a resumed run may have)."""
        if not self._every or done in self._done or (done % self._every and done != self._last):
            return
        figures = evaluator.figures()
        self._done.add(done)
        for tracker in self._trackers:
            tracker.write(done, figures)
        if observer:
            observer.evaluated(done, figures)


def _drawn_anew(config: TrainConfig) -> TaskConfig:
    if config.task.name is None:
        raise ConfigError(
            "eval.task: training reads a file or a dataset, so say what is held out: eval.task.file, .dataset or .name"
        )
    kwargs = {key: value for key, value in config.task.kwargs.items() if key != "seed"}
    return config.task.model_copy(update={"kwargs": kwargs})


def _seeded(task: TaskConfig, seed: int) -> TaskConfig:
    if task.name is None or "seed" in task.kwargs:
        return task
    return task.model_copy(update={"kwargs": {**task.kwargs, "seed": seed}})


def _source(task: TaskConfig) -> tuple[object, ...]:
    """What the questions are drawn from."""
    if task.file is not None:
        return (task.file.resolve(),)
    if task.dataset is not None:
        return (task.dataset, task.subset, task.split, task.revision)
    return (task.name, dict(task.kwargs))
