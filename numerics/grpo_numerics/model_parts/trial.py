"""The groups on which every way of scoring a model is tried before it is trusted, and what counts as the same score.

Random tokens serve: a wrong mask or position moves scores by tenths of a nat, re-ordered fp32 sums by 1e-5.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

Tokens = npt.NDArray[np.int32]

# Largest |difference| in nats that counts as the same score, of scores that lie a nat or more apart ...
_LARGEST = 1e-4
# ... and of any: roundings of the log-probs themselves.
_ROUNDINGS = 16 * 2.0**-23
# The largest mean of it for a half-precision body, which differs from itself by more.
_HALF_MEAN = 0.08

_SEED = 20501
# A window or an edge longer than this is not tried: it would take minutes.
_LONGEST = 640


def trial_groups(
    vocab_size: int, max_length: int, window: int = 0, edge: int | None = None
) -> list[tuple[Tokens, list[Tokens]]]:
    """Prompts (P,), each with its completions (C,), that touch every path: ragged, a one-token prompt, nested and shared
    prompts, a later turn, an empty completion; past the sliding window (0: none), and at `rotary_edge` with one token less and
    more, where that is affordable."""
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
    later = np.concatenate([stem, groups[0][1][0], tokens(40)])  # a second turn
    if len(later) + 7 <= max_length:
        groups.append((later, [tokens(3), tokens(7), tokens(5)]))
    if edge is not None and 5 < edge < min(_LONGEST, max_length):
        groups.append((tokens(edge - 4), [tokens(n) for n in (3, 4, 5, 6) if edge - 4 + n <= max_length]))
        groups.append((tokens(2), [tokens(3)]))  # and a short one after the longest: nothing may be left behind
    return [(prompt, completions) for prompt, completions in groups if len(prompt) < max_length]


def same_scores(ours: npt.NDArray[np.floating], truth: npt.NDArray[np.floating], dtype: torch.dtype) -> bool:
    """Whether two sets of log-probs (N,), nats, are the same scores of a model in `dtype`. With NaN they are not.

    Of a model whose scores hardly differ from token to token, as one with small random weights, more is asked: there every
    mistake is small, too.
    """
    if not ours.size:
        return True
    differences = np.abs(ours - truth)
    if dtype not in (torch.float32, torch.float64):
        return bool(differences.mean() <= _HALF_MEAN)
    allowed = max(_LARGEST * min(1.0, float(np.ptp(truth))), _ROUNDINGS * float(np.abs(truth).max()))
    return bool(differences.max() <= allowed)
