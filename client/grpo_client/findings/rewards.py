"""What the rewards pay for, beside what they are meant to."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from grpo_client.findings.finding import Finding, Rule, Verdict
from grpo_client.findings.pairs import POLICY, REFERENCE, pairs
from grpo_client.findings.samples import Floats, Ints, Samples
from grpo_client.findings.statistics import correlation, ranks

_GROUPS = 20
_WORDS = (1, 2, 3)  # tokens of an n-gram
_RECENT = 100_000  # tokens that are searched for phrases: the last ones, where a trick has had time to spread
_ID_BITS = 21  # three ids to a number; no vocabulary comes near two million
_PRIOR = 0.5  # of a count, in the log-odds: Monroe, Colaresi and Quinn, "Fightin' Words" (2008), flat prior

LENGTH = Rule(
    "reward_follows_length",
    "reward does not follow length",
    "Look: Spearman's correlation of reward and length within a group, averaged over groups in which both vary, is beyond 0.5.",
    "Read the longest (or shortest) rewarded completions: does the reward pay for length? A length penalty or another reward.",
    unit="groups",
)
PHRASES = Rule(
    "rewarded_phrases",
    "no phrase is rewarded that the reference would not write",
    "Look: an n-gram of one to three tokens is in rewarded completions with log-odds of z > 4, and the reference likes it "
    "less than the policy by more than 1 nat a token.",
    "Read the completions with that phrase: a format that the reward asks for is fine, a trick that it falls for is not.",
    unit="completions",
)
DISTINCT = Rule(
    "few_distinct",
    "completions of a group differ",
    "Look: fewer than 30 % of the completions of a group are distinct, on average.",
    "A group of copies has no advantage to learn from: raise the temperature, filter prompts that are solved, or sample more "
    "prompts in place of more completions.",
    unit="groups",
)


def reward_follows_length(samples: Samples) -> Finding:
    """Rule 13, of the lengths."""
    if "rewards" not in samples.known:
        return LENGTH.needs("rewards")
    found: list[float] = []
    for rows in _groups(samples):
        reward, length = samples.known["rewards"][rows], samples.lengths[rows].astype(np.float64)
        known = np.isfinite(reward)
        rho = correlation(ranks(reward[known]), ranks(length[known])) if known.sum() > 2 else np.nan
        if np.isfinite(rho):
            found.append(rho)
    if len(found) < _GROUPS:
        return LENGTH.needs(
            f"{_GROUPS} groups of three or more in which reward and length vary; there are {len(found)}"
        )
    mean = float(np.mean(found))
    if abs(mean) > 0.5:
        says = f"within a group {'longer' if mean > 0 else 'shorter'} completions earn more: Spearman {mean:+.2f}"
        return LENGTH.fires(says, len(found), {"spearman": mean}, at_most=Verdict.LOOK)
    return LENGTH.passes(len(found), {"spearman": mean}, enough=_GROUPS)


def few_distinct(samples: Samples) -> Finding:
    """Rule 13, of the copies."""
    if not len(samples.ids) or (samples.ids < 0).any():
        return DISTINCT.needs("completion_ids")
    bounds = samples.starts
    shares = [
        len({samples.ids[bounds[s] : bounds[s + 1]].tobytes() for s in rows}) / len(rows)
        for rows in _groups(samples)
        if len(rows) > 1
    ]
    if len(shares) < _GROUPS:
        return DISTINCT.needs(f"{_GROUPS} groups of two completions or more; there are {len(shares)}")
    mean = float(np.mean(shares))
    if mean < 0.3:
        says = f"only {mean:.0%} of a group's completions are distinct"
        return DISTINCT.fires(says, len(shares), {"distinct": mean}, at_most=Verdict.LOOK)
    return DISTINCT.passes(len(shares), {"distinct": mean}, enough=_GROUPS)


def rewarded_phrases(samples: Samples) -> Finding:
    """Rule 13, of the words. What counts is how many completions hold a phrase, not how often one repeats it."""
    at = pairs(samples)
    if at is None or "rewards" not in samples.known or (samples.ids < 0).any():
        return PHRASES.needs(f"rewards, completion_ids, {POLICY} and {REFERENCE}")
    d = np.full(len(samples.ids), np.nan)
    d[at.token] = at.d
    rewarded = _better_than_group(samples)
    known = np.isfinite(rewarded)
    good, bad = int((rewarded[known] > 0).sum()), int((rewarded[known] < 0).sum())
    if not good or not bad:
        return PHRASES.needs("completions that earned more and less than their group")
    best: tuple[float, Ints, float] | None = None
    for n in _WORDS:
        if (found := _loudest(samples, d, rewarded, n, good, bad)) and (best is None or found[0] > best[0]):
            best = found
    if best is None:
        return PHRASES.passes(good + bad, {})
    z, tokens, mean = best
    phrase = samples.ids[tokens[0] : tokens[0] + int(tokens[-1])].tolist()
    says = f"the tokens {phrase} are rewarded (log-odds z {z:.1f}) and {-mean:.1f} nats a token dearer to the policy"
    places = samples.places(tokens[:-1])
    return PHRASES.fires(says, good + bad, {"z": z, "mean_d": mean}, tokens=places, at_most=Verdict.LOOK)


def _groups(samples: Samples) -> Iterator[Ints]:
    for g in range(len(samples.records)):
        yield np.arange(np.searchsorted(samples.group, g), np.searchsorted(samples.group, g, side="right"))


def _better_than_group(samples: Samples) -> Floats:
    """(S,) sign of reward less the group's mean; NaN where nothing is known, 0 in a flat group."""
    sign = np.full(len(samples), np.nan)
    for rows in _groups(samples):
        reward = samples.known["rewards"][rows]
        known = np.isfinite(reward)
        if known.any():
            sign[rows[known]] = np.sign(reward[known] - reward[known].mean())
    return sign


def _loudest(
    samples: Samples, d: Floats, sign: Floats, n: int, good: int, bad: int
) -> tuple[float, Ints, float] | None:
    """z, where it stands (and n, last), mean d: of the n-gram most typical of rewarded completions that the reference does
    not like; None when there is none with z > 4 and mean d < -1."""
    of = samples.sequence
    room = samples.position <= samples.lengths[of] - n
    starts = np.flatnonzero(room & np.isfinite(sign[of]) & (sign[of] != 0))[-_RECENT:]
    if not len(starts):
        return None
    key = np.zeros(len(starts), dtype=np.int64)  # the n-gram as one number: 21 bits an id
    for i in range(n):
        key = (key << _ID_BITS) | samples.ids[starts + i]
    _, gram = np.unique(key, return_inverse=True)
    once = np.unique(gram * len(samples) + of[starts])
    holds, sequence = once // len(samples), once % len(samples)
    positive = sign[sequence] > 0
    grams = int(gram.max()) + 1
    in_good = np.bincount(holds[positive], minlength=grams) + _PRIOR
    in_bad = np.bincount(holds[~positive], minlength=grams) + _PRIOR
    odds = np.log(in_good / (good + 2 * _PRIOR - in_good)) - np.log(in_bad / (bad + 2 * _PRIOR - in_bad))
    z = odds / np.sqrt(1 / in_good + 1 / in_bad)
    per_window = d[starts[:, None] + np.arange(n)].mean(axis=1)
    known = np.isfinite(per_window)
    total = np.bincount(gram[known], weights=per_window[known], minlength=grams)
    mean = total / np.maximum(np.bincount(gram[known], minlength=grams), 1)
    loud = np.flatnonzero((z > 4) & (mean < -1))
    if not len(loud):
        return None
    pick = int(loud[np.argmax(z[loud])])
    return float(z[pick]), np.append(starts[gram == pick], n), float(mean[pick])
