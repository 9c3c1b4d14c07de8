"""What is asked, who answers, and what is held out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_serializer, field_validator, model_validator

from grpo_training.redaction import redacted_command

from .environment import EnvironmentConfig
from .rewards import OnError, RewardConfig
from .section import Section, base_url

RESERVED = frozenset({"mean", "std", "correct", "flat_groups", "unmeasured", "less_kl", "errors", "overlong", "shaped"})
"""Figures under `reward/` that are not of one function."""


class TaskConfig(Section):
    """What is asked of the policy, and how an answer is judged."""

    name: str | None = None
    """A reasoning-gym dataset, such as `basic_arithmetic`. Give this, `file` or `dataset`."""
    kwargs: Mapping[str, Any] = Field(default_factory=dict)
    """Settings of that dataset, as reasoning-gym names them."""
    file: Path | None = None
    """JSON lines, .parquet or .arrow, with `prompt` as TRL has it, or `question`; and `answer`, for `exact` and `graded`.
    Further columns are handed to the reward functions."""
    dataset: str | None = None
    """The same as a directory written by `datasets` (`save_to_disk`) or a hub id. Needs the extra `data`."""
    subset: str | None = None
    """Of a hub id: which of its configurations."""
    split: str = "train"
    """Of a dataset: which of its splits."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    columns: Mapping[str, str] = Field(default_factory=dict)
    """What a file's or dataset's columns are called: `{question: problem, answer: solution}`."""
    shuffle: bool = True
    """Ask in an order drawn from trainer.seed, another in each pass over the data; off: in the order of the rows."""
    reward: str = "exact"
    """`exact`: 1 when the answer is right by the dataset's own scorer, else 0. `graded`: the scorer's own figure, which
    may give part of a point. `reasoning_gym:DATASET`: that dataset's scorer. `module:function`: your function, of one answer
    (answer, entry) or, as TRL's, of many completions (prompts, completions, **columns)."""
    rewards: Mapping[str, RewardConfig] = Field(default_factory=dict)
    """Several by name, in place of `reward`: their weighted sum counts, and each is logged."""
    on_error: OnError = "raise"
    """Where a reward function fails: end the run, leave its reward out (`abstain`), or take error_value (`value`)."""
    error_value: float = Field(default=0.0, allow_inf_nan=False)
    """The reward of a call that failed, with on_error=value."""
    answer_pattern: str | None = None
    """Regular expression that finds the answer in a completion: its first group, or the whole match. None takes the
    whole completion, stripped."""
    answer_match: Literal["first", "last"] = "last"
    """Which match counts when there are several."""
    chat: bool = True
    """Put the question through the tokenizer's chat template, as a user's turn."""
    system: str | None = None
    """The system turn. None: whatever the template puts there itself."""
    template: str = "{question}"
    """The text of the question; a field of the entry's metadata can be named too."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(source is not None for source in (self.name, self.file, self.dataset)) != 1:
            raise ValueError(
                "give one of name (a reasoning-gym dataset), file (JSON lines, parquet, arrow) and dataset"
            )
        if self.name is not None and self.columns:
            raise ValueError("columns are those of a file or a dataset: reasoning-gym has its own")
        return self

    @field_validator("rewards", mode="before")
    @classmethod
    def _a_name_is_a_function(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {name: {"function": of} if isinstance(of, str) else of for name, of in value.items()}

    @model_validator(mode="after")
    def _one_or_several_rewards(self) -> Self:
        # By value, since a config.json that is trained from again gives every field.
        if self.rewards and self.reward != type(self).model_fields["reward"].default:
            raise ValueError("give either reward (one) or rewards (several, by name)")
        if bad := [name for name in self.rewards if not re.fullmatch(r"[\w.-]+", name)]:
            raise ValueError(f"rewards: {bad[0]!r} becomes part of a metric's name: use letters, digits, _, - and .")
        if taken := sorted(self.rewards.keys() & RESERVED):
            raise ValueError(f"rewards: {taken[0]!r} is the name of a figure already: choose another")
        return self


class RolloutConfig(Section):
    """What is sampled in a step."""

    prompts_per_step: int = Field(default=8, ge=1)
    """Prompts, and so groups, in a step."""
    group_size: int = Field(default=8, ge=1)
    """Completions sampled of each prompt."""
    max_new_tokens: int = Field(default=16, ge=1)
    """A completion is cut here, whether it has ended or not."""
    stop: tuple[str, ...] = ()
    """A completion also ends with the first token at which one of these strings is complete, as it ends with EOS."""
    temperature: float = Field(default=1.0, gt=0)
    """Logits are divided by it before normalising: in sampling, in the policy's and in the reference's log-probs."""
    max_prompt_tokens: int = Field(default=1024, ge=1)
    """A longer prompt is dealt with as long_prompts says."""
    long_prompts: Literal["refuse", "filter", "cut"] = "refuse"
    """Of prompts that are too long: end the run before it begins, leave their rows out, or keep only their last tokens. Both
    are counted in the log."""
    resample: int = Field(default=0, ge=0)
    """Times that groups without signal, whose rewards are all equal, are sampled anew at most (DAPO's dynamic sampling), with
    other prompts where the task is shuffled."""
    environment: EnvironmentConfig | None = None
    """`module:Class`, or a section with limits: answers the policy whenever its turn has ended. max_new_tokens counts what both
    write."""
    backend: Literal["policy", "openai"] = "policy"
    """Who samples: the trained weights in this process, or a server with the OpenAI completions API that takes and returns
    token ids (vLLM, SGLang). What follows is for the latter."""
    base_url: str | None = None
    """`http://host:8000`; requests go to `/v1/completions` there."""
    model: str | None = None
    """The name under which that server knows the model."""
    api_key_env: str | None = None
    """Environment variable that holds the server's API key; None: no key is sent."""
    timeout: float = Field(default=600.0, gt=0)
    """Seconds without a byte before a try counts as lost: an answer comes when its last completion has ended."""
    max_wait: float = Field(default=900.0, ge=0)
    """Seconds over which a request is tried again while the server is away or full; `Retry-After` is kept to."""
    concurrency: int = Field(default=16, ge=1)
    """Requests under way at once; each is one prompt with its group."""
    sync_every: int = Field(default=0, ge=0)
    """Steps between bringing the policy's weights to the server with `sync_command`. 0 never does: the server stays as it
    is, or somebody else updates it."""
    sync_command: tuple[str, ...] = ()
    """A program and its arguments that make the server load the model directory `{path}`, and end when it has."""

    @field_validator("environment", mode="before")
    @classmethod
    def _a_name_is_a_factory(cls, value: Any) -> Any:
        return {"factory": value} if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _some_text(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            raise ValueError("an empty string would end every completion with its first token: leave it out")
        return value

    @field_validator("base_url")
    @classmethod
    def _base_without_route(cls, value: str | None) -> str | None:
        if value is None:
            return None
        return base_url(value, key="name its variable in api_key_env").removesuffix("/v1")

    @field_validator("api_key_env")
    @classmethod
    def _name_of_a_variable(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
            raise ValueError("is the name of an environment variable, such as OPENAI_API_KEY, and not the key itself")
        return value

    @field_serializer("sync_command", when_used="json")
    def _command_without_secrets(self, value: tuple[str, ...]) -> list[str]:
        return redacted_command(value)

    @model_validator(mode="after")
    def _whole_backend(self) -> Self:
        if self.backend == "openai" and not (self.base_url and self.model):
            raise ValueError("backend=openai needs base_url (such as http://localhost:8000) and model")
        if self.backend == "policy" and (self.base_url or self.sync_every or self.sync_command):
            raise ValueError(
                "base_url, sync_every and sync_command are for a server: set backend=openai, or leave them out"
            )
        if bool(self.sync_every) != bool(self.sync_command):
            raise ValueError("sync_every and sync_command belong together: give both or neither")
        if self.sync_command and not any("{path}" in word for word in self.sync_command):
            raise ValueError("sync_command must have {path} in it: the directory that the server is to load")
        return self


class EvalConfig(Section):
    """Answers to held-out questions, by the weights as they are then."""

    every: int = Field(default=0, ge=0)
    """Steps between evaluations; the first is before step 0, the last after the last step. 0 evaluates never."""
    task: TaskConfig | None = None
    """What is asked. None: the training task's dataset, drawn with eval.seed."""
    tasks: Mapping[str, TaskConfig] = Field(default_factory=dict)
    """Several of them by name, in place of `task`."""
    prompts: int = Field(default=64, ge=1)
    """Questions of each task, the same ones at every evaluation."""
    completions: int = Field(default=1, ge=1)
    """Answers to each question; more than one needs a temperature."""
    temperature: float = Field(default=0.0, ge=0)
    """0 takes the likeliest token each time; else it divides the logits, and the same random numbers come each time."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """An answer is cut here; None: at rollout.max_new_tokens."""
    seed: int = Field(default=1_000_003, ge=0)
    """Which questions and, with a temperature, which random numbers. Training's seed has no part in it."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.task is not None and self.tasks:
            raise ValueError("give either task (one) or tasks (several, by name)")
        if bad := [name for name in self.tasks if not re.fullmatch(r"[\w.-]+", name)]:
            raise ValueError(f"tasks: {bad[0]!r} becomes part of a metric's name: use letters, digits, _, - and .")
        if self.completions > 1 and self.temperature == 0:
            raise ValueError("completions above 1 are all the same at temperature 0: set temperature, or completions=1")
        return self
