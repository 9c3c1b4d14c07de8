"""What the policy is asked and how its answers are judged.

A task is an endless walk over a dataset, shuffled or in order: the problems of step n follow from (seed, n) alone, so
nothing has to be remembered for a resume. Where entries come from is in `entries`, how they become prompts in `prompting`,
and how answers are judged in `judging`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from grpo_training.config import TaskConfig
from grpo_training.tasks.calling import Completion
from grpo_training.tasks.entries import open_source
from grpo_training.tasks.judging import Judge, Judged, Judgement
from grpo_training.tasks.prompting import LongPrompts, Problem, Prompter
from grpo_training.tasks.rewards import tell_unmeasured
from grpo_training.tasks.rows import Entry

__all__ = ["Completion", "Judged", "Problem", "Task"]


class Task:
    """Problems by step, and the judge of their answers."""

    def __init__(
        self,
        config: TaskConfig,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_prompt_tokens: int = 1024,
        long_prompts: LongPrompts = "refuse",
        seed: int = 0,
    ) -> None:
        """seed: of a reasoning-gym dataset whose kwargs name none. Raises ConfigError naming what cannot be used, and where."""
        self._prompter = Prompter(config, tokenizer, limit=max_prompt_tokens, long=long_prompts)
        source = open_source(config, seed=seed)
        self._entries, self._places = source.entries, source.places
        self.fingerprint = source.fingerprint
        """Of the entries: a resumed run must be asked the same ones."""
        self._judge = Judge(config, source)
        self._shuffle = config.shuffle
        # A procedural dataset makes its entries anew each time, and is asked for all of them only where some may go.
        all_at_once = source.dataset is None or long_prompts != "refuse"
        self._asked = self._prompter.fitting(self._entries, self._places) if all_at_once else range(len(self._entries))

    def __len__(self) -> int:
        """Entries that are asked; a run that needs more walks over them again in another order."""
        return len(self._asked)

    @property
    def reward_names(self) -> tuple[str, ...]:
        """Of the reward functions, as the metrics have them."""
        return self._judge.names

    @property
    def reward_name(self) -> str:
        """The reward functions, as the configuration names them."""
        return self._judge.told

    def entries(self) -> Iterator[tuple[Entry, str]]:
        """Each entry that is asked, and its place in words."""
        for i in self._asked:
            yield self._entries[i], self._places[i]

    def problems(self, step: int, count: int, seed: int) -> list[Problem]:
        """The `count` problems of a step. Epoch e visits the entries in the permutation drawn from (seed, e), or in order."""
        size = len(self._asked)
        orders: dict[int, Sequence[int]] = {}
        chosen: list[Problem] = []
        for position in range(step * count, (step + 1) * count):
            epoch, place = divmod(position, size)
            if epoch not in orders:
                shuffled = np.random.default_rng((seed, epoch)).permutation(size) if self._shuffle else range(size)
                orders[epoch] = [int(i) for i in shuffled]
            index = self._asked[orders[epoch][place]]
            chosen.append(self._prompter.problem(self._entries[index], self._places[index]))
        return chosen

    def judge(self, problem: Problem, text: str) -> Judged:
        """What one completion of a problem earns, as if nothing were known of it but its text."""
        return self.judge_all([Completion(problem, text, [], text, False)]).judged[0]

    def judge_all(self, completions: Sequence[Completion], *, when: str = "", step: int = 0) -> Judgement:
        """Reward completions: see `Judge`. A warning counts those whose reward is not known. when: in words, for it."""
        judgement = self._judge.judge(completions, when=when, step=step)
        tell_unmeasured(judgement.judged, [c.problem.where for c in completions], name=self.reward_name, when=when)
        return judgement

    def close(self) -> None:
        """End what reward functions run in."""
        self._judge.close()
