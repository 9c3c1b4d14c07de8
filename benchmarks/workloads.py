"""The shapes that are measured: groups of random tokens, as clients count them (every completion with its prompt)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from grpo_client.protocol import ScoreRequest

VOCAB = 49152  # of the demo model


@dataclass(frozen=True)
class Workload:
    """groups x group_size sequences; prompt and completion lengths are drawn from the ranges, ends included."""

    name: str
    groups: int
    group_size: int
    prompt: tuple[int, int]
    completion: tuple[int, int]

    def request(self, seed: int = 0) -> ScoreRequest:
        """The same tokens for every contender of one round."""
        rng = np.random.default_rng(seed)

        def tokens(span: tuple[int, int]) -> np.ndarray:
            return rng.integers(3, VOCAB, int(rng.integers(span[0], span[1] + 1)), dtype=np.int32)

        prompts = [tokens(self.prompt) for _ in range(self.groups)]
        completions = [[tokens(self.completion) for _ in range(self.group_size)] for _ in prompts]
        return ScoreRequest.of(prompts, completions)


@dataclass(frozen=True)
class Turns:
    """Rollouts of agents: each turn's prompt is the last one's, its completion and what a tool said; a group each."""

    name: str
    samples: int
    turns: int
    prompt: int
    completion: int
    tool: int

    def request(self, seed: int = 0) -> ScoreRequest:
        """Turn by turn, the samples of each side by side."""
        rng = np.random.default_rng(seed)
        prompts: list[np.ndarray] = []
        completions: list[list[np.ndarray]] = []
        contexts = [rng.integers(3, VOCAB, self.prompt, dtype=np.int32)] * self.samples
        for _ in range(self.turns):
            answers = [rng.integers(3, VOCAB, self.completion, dtype=np.int32) for _ in contexts]
            prompts += contexts
            completions += [[answer] for answer in answers]
            said = [rng.integers(3, VOCAB, self.tool, dtype=np.int32) for _ in contexts]
            contexts = [np.concatenate(parts) for parts in zip(contexts, answers, said, strict=True)]
        return ScoreRequest.of(prompts, completions)

    @property
    def tree_tokens(self) -> int:
        """Distinct beginnings that predict something, or are before one that does."""
        of_each = self.turns * self.completion + (self.turns - 1) * self.tool - 1
        return self.prompt + self.samples * of_each


TURNS = Turns("turns", samples=8, turns=4, prompt=256, completion=64, tool=32)
WORKLOADS: dict[str, Workload | Turns] = {
    w.name: w
    for w in (
        Workload("2x16 512+128", 2, 16, (512, 512), (128, 128)),
        Workload("1x16 1024+256", 1, 16, (1024, 1024), (256, 256)),
        Workload("4x8 64..512+8..256", 4, 8, (64, 512), (8, 256)),
        Workload("24x1 64..512+32..256", 24, 1, (64, 512), (32, 256)),
        TURNS,
        Workload("smoke", 2, 4, (48, 48), (8, 16)),
    )
}


def client_tokens(request: ScoreRequest) -> int:
    """Every completion with its prompt."""
    return sum(len(g.prompt) + len(c) for g in request.groups for c in g.completions)
