"""What the probe asks: a built-in set that any model can be given, made of its own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Prose, a chat turn, code, other scripts, numbers: tokens that are likely, unlikely, and cut in odd places.
TEXTS = (
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "User: What is 17 + 25?\nAssistant: 17 + 25 = 42, because 17 + 20 = 37 and 37 + 5 = 42.",
    "def add(a, b):\n    return a + b\n\nprint(add(2, 3))\n",
    "Größe, naïve, 東京, привет, 🙂 and 3.14159 in one line.",
    "Once upon a time",
)
RANDOM_TOKENS = 24
SEED = 20


@dataclass(frozen=True, slots=True)
class Facts:
    """What the oracle knows of the model. eos_id: None where it has none. texts: the ids of TEXTS, empty if it has no
    tokenizer."""

    vocab_size: int
    max_length: int
    eos_id: int | None
    texts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Case:
    """A sequence that is scored from position start on; what stands before is its prompt. 1 <= start <= len(ids)."""

    ids: tuple[int, ...]
    start: int

    def __len__(self) -> int:
        """Positions that are scored."""
        return len(self.ids) - self.start


def ordinary(facts: Facts) -> list[Case]:
    """The main set: texts of different lengths, two that share a prompt, and ids drawn at random (most unlikely ones)."""
    rng = np.random.default_rng(SEED)
    cases = [Case(ids, max(1, len(ids) // 3)) for ids in facts.texts if len(ids) >= 2]
    if cases:
        first = cases[0]
        cases.append(Case(first.ids[: first.start] + tuple(reversed(first.ids[first.start :])), first.start))
    return [*cases, *(Case(_random(rng, facts, n), 1) for n in (RANDOM_TOKENS, 3))]


def with_eos(facts: Facts) -> list[Case]:
    """End-of-text inside, at the end, and many of them, as where it also is the padding token. Empty without one."""
    if facts.eos_id is None:
        return []
    body = next((ids for ids in facts.texts if len(ids) >= 4), _random(np.random.default_rng(SEED), facts, 8))
    eos = (facts.eos_id,)
    half = len(body) // 2
    return [
        Case(body + eos, half),
        Case(body[:half] + eos + body[half:], half),
        Case(body + 4 * eos, half),
        Case(4 * eos + body, 4),
    ]


def long_one(facts: Facts, length: int) -> Case:
    """One sequence of so many tokens, or of as many as the context holds beside one more."""
    n = max(2, min(length, facts.max_length - 1))
    body = [token for ids in facts.texts for token in ids] or list(_random(np.random.default_rng(SEED), facts, 64))
    return Case(tuple((body * (n // len(body) + 1))[:n]), 1)


def fresh(facts: Facts) -> Case:
    """A sequence that no server has seen, in this run or an earlier one: a text behind ids that are drawn anew."""
    return Case(_random(np.random.default_rng(), facts, 4) + max(facts.texts, key=len, default=(1,) * 16), 1)


def alone(facts: Facts) -> Case:
    """A single token with nothing behind it: an empty completion."""
    return Case((facts.texts[0][0] if facts.texts and facts.texts[0] else 1,), 1)


def from_the_start(cases: Sequence[Case]) -> list[Case]:
    """The same sequences scored from their second token on, which has one token of context."""
    return [Case(c.ids, 1) for c in cases]


def _random(rng: np.random.Generator, facts: Facts, n: int) -> tuple[int, ...]:
    drawn: npt.NDArray[np.int64] = rng.integers(0, facts.vocab_size, n)
    return tuple(drawn.tolist())
