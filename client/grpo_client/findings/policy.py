"""Are the policy's log-probs what they are taken for: of the distribution that was sampled, of these tokens, unrounded?"""

from __future__ import annotations

from math import exp

import numpy as np

from grpo_client.findings.finding import ENOUGH, SHOWN, Finding, Rule
from grpo_client.findings.pairs import POLICY, REFERENCE, Pairs, at_start, lacking, pairs
from grpo_client.findings.samples import Floats, Samples
from grpo_client.findings.statistics import (
    binomial_tail,
    correlation,
    decimals_kept,
    line_fit,
    share_in_bfloat16,
    share_in_float16,
    z_score,
)

_TAILS = (3.0, 5.0, 7.0)  # nats

NOT_THE_SAMPLER = Rule(
    "not_the_sampler",
    "the policy's log-probs are those of what was sampled, as far as its tokens can tell",
    "Tokens drawn by t have E exp(r - t) = 1 and, by Markov, P(r - t > x) <= exp(-x). Check: the mean is over 1.05 with "
    "z > 4 or below 0.5; or the share beyond 3, 5 or 7 nats has a binomial p < 1e-6.",
    "Compare the policy's log-probs with the sampler's: raw log-probs where processed ones are wanted (temperature, top-p), "
    "weights that are older or newer than the sampler's, another normalizer, or a shift by one token.",
)
SHARPNESS = Rule(
    "sharpness",
    "what was sampled is as sharp as what was scored",
    "-log p - H has mean 0 for tokens drawn by p. Check: the mean is off by more than 0.1 nats with |z| > 5.",
    "Score at the temperature and with the top-p and top-k that were sampled with; below 0 the samples are sharper than "
    "the scores, above 0 flatter.",
)
DIVIDED = Rule(
    "divided_by_temperature",
    "the log-probs were not divided by a temperature",
    "At step 0 log-probs that were divided by T lie on the line t = r / T. Check: R^2 > 0.9999, slope off 1 by more than "
    "0.01, intercept within 0.01.",
    "Divide the logits by the temperature, before the log-softmax; log-probs divided afterwards are of no distribution.",
)
ROUNDED = Rule(
    "rounded",
    "the policy's log-probs have full precision",
    "Check: more than 95 % of the log-probs are numbers that bfloat16 (or float16) holds exactly.",
    "Take the log-softmax in float32: cast the logits up before it, not the log-probs after it.",
)
SHIFTED = Rule(
    "shifted",
    "the policy's and the reference's log-probs are of the same tokens",
    "Check: corr(t[i], r[i + 1]) or corr(t[i + 1], r[i]) exceeds corr(t[i], r[i]) by more than 0.3.",
    "The logits at position i predict the token at i + 1: shift one of the two by one.",
)


def not_the_sampler(samples: Samples) -> Finding:
    """Rule 1: tokens drawn by t."""
    named = [("policy_logprobs", pairs(samples))]
    # What another engine sampled was drawn by its own log-probs; the policy's are then the reference of the test.
    if "sampler_logprobs" in samples.columns:
        named.append(
            ("sampler_logprobs", pairs(samples, "sampler_logprobs", POLICY if POLICY in samples.columns else REFERENCE))
        )
    found = [_drawn_by(samples, name, at) for name, at in named if at is not None]
    if not found:
        return NOT_THE_SAMPLER.needs(lacking(samples, POLICY, REFERENCE))
    order = ("check", "look", "passed", "needs_data")
    return min(found, key=lambda f: order.index(f.verdict.value))


def _drawn_by(samples: Samples, name: str, at: Pairs) -> Finding:
    n = len(at)
    if n < 2:
        return NOT_THE_SAMPLER.needs(f"{ENOUGH} tokens; there are {n}")
    d = at.d
    ratio = np.exp(np.minimum(d, 50.0))
    mean, z = float(ratio.mean()), z_score(ratio, 1.0)
    tails = {x: binomial_tail(int((d > x).sum()), n, exp(-x)) for x in _TAILS}
    worst = min(tails, key=lambda x: tails[x])
    figures = {"mean_ratio": mean, "z": z, "worst_tail_nats": worst, "worst_tail_p": tails[worst]}
    if not ((mean > 1.05 and z > 4) or mean < 0.5 or tails[worst] < 1e-6):
        return NOT_THE_SAMPLER.passes(n, figures)
    says = f"{name} are not what sampled: mean exp(r - t) is {mean:.3g} (z {z:.1f}) where it must be 1"
    if tails[worst] < 1e-6:
        says += f", and {int((d > worst).sum())} of {n} tokens are over {worst:g} nats off (p {tails[worst]:.0e})"
    order = np.argsort(-d, kind="stable")
    return NOT_THE_SAMPLER.fires(says, n, figures, tokens=samples.places(at.token[order[:SHOWN]]))


def sharpness(samples: Samples) -> Finding:
    """Rule 5. With the policy's own entropies at any step; with the reference's at step 0 alone."""
    at = _drawn_by_the_reference(samples)
    if at is not None and len(at[0]):
        logprobs, entropy = at
    elif POLICY in samples.columns and "entropy" in samples.columns:
        logprobs, entropy = _known(samples.columns[POLICY], samples.columns["entropy"])
    else:
        return SHARPNESS.needs("the entropy of each position: the server's address, or entropy in the file")
    n = len(logprobs)
    if n < 2:
        return SHARPNESS.needs(f"{ENOUGH} tokens; there are {n}")
    excess = -logprobs - entropy
    mean, z = float(excess.mean()), z_score(excess, 0.0)
    figures = {"mean_excess": mean, "z": z}
    if abs(z) > 5 and abs(mean) > 0.1:
        how = "sharper" if mean < 0 else "flatter"
        return SHARPNESS.fires(
            f"sampled {how} than scored: mean(-log p - H) is {mean:+.2f} nats (z {z:.1f})", n, figures
        )
    return SHARPNESS.passes(n, figures)


def _drawn_by_the_reference(samples: Samples) -> tuple[Floats, Floats] | None:
    """The reference's log-probs and entropies at step 0, where its twin sampled. A file that counts no steps is taken for
    one that the reference sampled."""
    if REFERENCE not in samples.columns or "ref_entropy" not in samples.columns:
        return None
    there = samples.token_step() <= 0
    return _known(samples.columns[REFERENCE][there], samples.columns["ref_entropy"][there])


def divided_by_temperature(samples: Samples) -> Finding:
    """Rule 6, at step 0."""
    at = at_start(samples)
    if at is None or not len(at):
        return DIVIDED.needs(f"{lacking(samples, POLICY, REFERENCE)}")
    slope, intercept, fit = line_fit(at.r, at.t)
    figures = {"slope": slope, "intercept": intercept, "r_squared": fit}
    if fit > 0.9999 and abs(slope - 1) > 0.01 and abs(intercept) < 0.01:
        says = f"the policy's log-probs are the reference's divided by T = {1 / slope:.3g} (slope {slope:.3f}, R^2 {fit:.5f})"
        return DIVIDED.fires(says, len(at), figures)
    return DIVIDED.passes(len(at), figures)


def rounded(samples: Samples) -> Finding:
    """Rule 7."""
    if POLICY not in samples.columns:
        return ROUNDED.needs(POLICY)
    values = samples.columns[POLICY]
    values = values[np.isfinite(values) & (values != 0)]
    if len(values) and not decimals_kept(values):
        return ROUNDED.needs("log-probs with more than five decimals: shorter ones hide how they were computed")
    bfloat, half = share_in_bfloat16(values), share_in_float16(values)
    figures = {"share_in_bfloat16": bfloat, "share_in_float16": half}
    if max(bfloat, half) > 0.95:
        name = "bfloat16" if bfloat > 0.95 else "float16"
        says = f"the policy's log-probs were rounded to {name}: it holds {max(bfloat, half):.0%} of them exactly"
        return ROUNDED.fires(says, len(values), figures)
    return ROUNDED.passes(len(values), figures)


def shifted(samples: Samples) -> Finding:
    """Rule 8."""
    at = pairs(samples)
    if at is None:
        return SHIFTED.needs(lacking(samples, POLICY, REFERENCE))
    # Neighbours within one completion, and of one set of tokens, so that the three correlations compare.
    here = np.flatnonzero((np.diff(at.token) == 1) & (np.diff(at.sequence) == 0))
    if len(here) < 2:
        return SHIFTED.needs(f"{ENOUGH} tokens with a neighbour; there are {len(here)}")
    same = correlation(at.t[here], at.r[here])
    early, late = correlation(at.t[here], at.r[here + 1]), correlation(at.t[here + 1], at.r[here])
    figures = {"same": same, "t_early": early, "t_late": late}
    if max(early, late) - same > 0.3:
        where = "one token early" if early > late else "one token late"
        says = f"the policy's log-probs are {where}: correlation {max(early, late):.2f} shifted, {same:.2f} as they are"
        return SHIFTED.fires(says, len(here), figures)
    return SHIFTED.passes(len(here), figures)


def _known(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    both = np.isfinite(a) & np.isfinite(b)
    return a[both], b[both]
