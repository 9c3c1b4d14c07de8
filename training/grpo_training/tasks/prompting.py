"""How an entry of a dataset becomes a prompt: template, chat template, token ids, and the limit on them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from grpo_training.config import ConfigError, TaskConfig
from grpo_training.tasks.rows import Entry
from grpo_training.tasks.templates import Template

logger = logging.getLogger(__name__)

_SLACK = 8  # tokens beyond a text's bytes that a tokenizer may make of it: BOS, a space put in front


Turns = list[dict[str, Any]]
LongPrompts = Literal["refuse", "filter", "cut"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One entry of the dataset and the prompt that asks for it, as token ids. prompt: a text, or the turns of a conversation
    that went through the chat template. where: its place, in words."""

    entry: Entry
    prompt_text: str
    prompt_ids: list[int]
    prompt: str | Turns
    where: str = "a row"


class Prompter:
    """Makes prompts of entries."""

    def __init__(
        self, config: TaskConfig, tokenizer: PreTrainedTokenizerBase, *, limit: int, long: LongPrompts
    ) -> None:
        """limit: tokens of a prompt. long: what becomes of longer ones. Raises ConfigError for an unusable template."""
        self._config = config
        self._tokenizer = tokenizer
        self._limit, self._long = limit, long
        self._template = Template(config.template)

    def problem(self, entry: Entry, where: str) -> Problem:
        """Raises ConfigError that names the place of a prompt that is too long, or lacks what the template names."""
        prompt = self._prompt(entry, where)
        text = self._text(prompt)
        ids = self._ids(text, plain=isinstance(prompt, str))
        if self._long == "cut":
            ids = ids[-self._limit :]
        if not 0 < len(ids) <= self._limit:
            raise ConfigError(
                f"{where}: a prompt has {len(ids)} tokens, allowed are 1 to {self._limit} "
                f"(rollout.max_prompt_tokens; rollout.long_prompts says what becomes of longer ones): {text[:80]!r}"
            )
        return Problem(entry, text, ids, prompt, where)

    def fitting(self, entries: Sequence[Entry], places: Sequence[str]) -> Sequence[int]:
        """The places of the entries that can be asked. Raises ConfigError for one that cannot, where nothing else is asked for.

        A row that cannot be asked ends the run before it begins, and not in an hour.
        """
        around: int | None = None  # tokens of the chat template, without a question
        long: list[int] = []
        for i, (entry, where) in enumerate(zip(entries, places, strict=True)):
            prompt = self._prompt(entry, where)
            # A tokenizer makes at most one token of a byte, so only long texts need to be tokenized to be sure.
            if "question" in entry:
                if around is None:
                    around = len(self._ids(self._text(self._turns(".")))) if self._config.chat else 0
                if len(self._template.render(entry, where).encode()) <= self._limit - _SLACK - around:
                    continue
            tokens = len(self._ids(self._text(prompt), plain=isinstance(prompt, str)))
            if not tokens or (self._long == "refuse" and tokens > self._limit):
                self.problem(entry, where)
            if tokens > self._limit:
                long.append(i)
        if not long:
            return range(len(entries))
        told = "left out" if self._long == "filter" else f"cut to their last {self._limit}"
        logger.warning(
            "%d of %d prompts have more than rollout.max_prompt_tokens=%d tokens and are %s, the first %s",
            len(long),
            len(entries),
            self._limit,
            told,
            places[long[0]],
        )
        if self._long == "cut":
            return range(len(entries))
        if len(long) == len(entries):
            raise ConfigError(f"all {len(long)} prompts have more than rollout.max_prompt_tokens={self._limit} tokens")
        left_out = set(long)
        return [i for i in range(len(entries)) if i not in left_out]

    def _prompt(self, entry: Entry, where: str) -> str | Turns:
        if "question" in entry:
            question = self._template.render(entry, where)
            return self._turns(question) if self._config.chat else question
        prompt = entry["prompt"]
        if isinstance(prompt, str):
            return prompt
        given = any(turn["role"] == "system" for turn in prompt[:1])
        return [*([] if given else self._system()), *(dict(turn) for turn in prompt)]

    def _turns(self, question: str) -> Turns:
        return [*self._system(), {"role": "user", "content": question}]

    def _system(self) -> Turns:
        return [] if self._config.system is None else [{"role": "system", "content": self._config.system}]

    def _text(self, prompt: str | Turns) -> str:
        if isinstance(prompt, str):
            return prompt
        begun = prompt[-1]["role"] == "assistant"  # a turn of the policy's own, to be gone on with
        how: dict[str, Any] = {"continue_final_message": True} if begun else {"add_generation_prompt": True}
        return str(self._tokenizer.apply_chat_template(prompt, tokenize=False, **how))

    def _ids(self, text: str, *, plain: bool = False) -> list[int]:
        # The chat template has written its own special tokens; a plain prompt gets what the tokenizer adds.
        return list(self._tokenizer(text, add_special_tokens=plain)["input_ids"])
