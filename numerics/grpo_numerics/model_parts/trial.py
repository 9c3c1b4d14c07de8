"""The groups on which every way of scoring a model is tried before it is trusted, and what counts as the same score.

Random tokens serve: a wrong mask or position moves scores by tenths of a nat, re-ordered fp32 sums by 1e-5.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

Tokens = npt.NDArray[np.int32]

# Largest |difference| in nats that counts as the same score. Half-precision bodies differ from themselves by more.
SAME_SCORE = {torch.float32: 1e-4, torch.float64: 1e-4}

_SEED = 20501
# A window or an edge longer than this is not tried: it would take minutes.
_LONGEST = 640


def trial_groups(
    vocab_size: int, max_length: int, window: int = 0, edge: int | None = None
) -> list[tuple[Tokens, list[Tokens]]]:
    """Prompts (P,), each with its completions (C,), that touch every path: ragged, a one-token prompt, nested and shared
    prompts, an empty completion; past the sliding window (0: none), and at `rotary_edge` with one token less and more, where
    that is affordable."""
    rng = np.random.default_rng(_SEED)

    def tokens(n: int) -> Tokens:
        return rng.integers(0, vocab_size, n, dtype=np.int32)

    long = window + 24 if window and window + 24 <= _LONGEST else 48
    long = max(2, min(long, max_length - 24))
    stem = tokens(long)
    turn = min(20, long)
    groups = [
        (stem, [tokens(9), tokens(1), tokens(0), tokens(17)]),
        (stem[:1], [tokens(5), tokens(5)]),
        (stem[:turn], [tokens(4)]),
        (np.concatenate([stem[:turn], tokens(7)]), [tokens(6), tokens(3)]),
        (stem, [tokens(2)]),
    ]
    if edge is not None and 5 < edge < min(_LONGEST, max_length):
        groups.append((tokens(edge - 4), [tokens(n) for n in (3, 4, 5, 6) if edge - 4 + n <= max_length]))
        groups.append((tokens(2), [tokens(3)]))  # and a short one after the longest: nothing may be left behind
    return [(prompt, completions) for prompt, completions in groups if len(prompt) < max_length]
