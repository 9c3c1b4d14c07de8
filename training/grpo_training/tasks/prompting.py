"""How an entry of a dataset becomes a prompt: template, chat template, token ids, and the limit on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from grpo_training.config import ConfigError, TaskConfig
from grpo_training.tasks.entries import Entry
from grpo_training.tasks.templates import Template

_SLACK = 8  # tokens beyond a text's bytes that a tokenizer may make of it: BOS, a space put in front


Turns = list[dict[str, Any]]


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

    def __init__(self, config: TaskConfig, tokenizer: PreTrainedTokenizerBase, *, max_prompt_tokens: int) -> None:
        """Raises ConfigError for a template that cannot be used."""
        self._config = config
        self._tokenizer = tokenizer
        self._max_prompt_tokens = max_prompt_tokens
        self._template = Template(config.template)

    def problem(self, entry: Entry, where: str) -> Problem:
        """Raises ConfigError that names the place of a prompt that is too long, or lacks what the template names."""
        prompt = self._prompt(entry, where)
        text = self._text(prompt)
        ids = self._ids(text)
        if not 0 < len(ids) <= self._max_prompt_tokens:
            raise ConfigError(
                f"{where}: a prompt has {len(ids)} tokens, allowed are 1 to {self._max_prompt_tokens} "
                f"(rollout.max_prompt_tokens): {text[:80]!r}"
            )
        return Problem(entry, text, ids, prompt, where)

    def check(self, entries: Sequence[Entry], places: Sequence[str]) -> None:
        """A row that cannot be asked ends the run before it begins, and not in an hour: ConfigError."""
        around = len(self._ids(self._text(self._turns(".")))) if self._config.chat else 0
        room = self._max_prompt_tokens - _SLACK - around
        for entry, where in zip(entries, places, strict=True):
            # A tokenizer makes at most one token of a byte, so only long texts need to be tokenized to be sure.
            if len(self._template.render(entry, where).encode()) > room:
                self.problem(entry, where)

    def _prompt(self, entry: Entry, where: str) -> str | Turns:
        question = self._template.render(entry, where)
        return self._turns(question) if self._config.chat else question

    def _turns(self, question: str) -> Turns:
        system = [] if self._config.system is None else [{"role": "system", "content": self._config.system}]
        return [*system, {"role": "user", "content": question}]

    def _text(self, prompt: str | Turns) -> str:
        if isinstance(prompt, str):
            return prompt
        return str(self._tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True))

    def _ids(self, text: str) -> list[int]:
        # The chat template has written its own special tokens; a plain prompt gets what the tokenizer adds.
        return list(self._tokenizer(text, add_special_tokens=not self._config.chat)["input_ids"])
