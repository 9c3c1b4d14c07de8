"""The ids on which teacher and student are compared, and what the teacher says there: formed from an answer's arrays.

The mass outside is the server's own sum wherever it sums over just that set. For the union of two sets it is what one
set leaves less what the other has of it; where next to nothing of a tail would be left, which a difference cannot
resolve, the position is compared on the teacher's ids alone. Either is a lower bound of the full divergence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from grpo_training.config import DistillConfig, TeacherSupport

# Of a tail, which a difference of log-probs with errors of some 1e-5 gives to 1e-3.
_RESOLVED = 1e-2


class TeacherTokens(NamedTuple):
    """Of N tokens. ids: (N, j) int64, -1 for none, distinct where not -1. logprobs: (N, j) of the teacher. tail: (N,) of the
    mass outside, nats; 0 where it was not asked for. overlap: (N,) the share of the teacher's best that are among the
    student's; None where the two are not both known."""

    ids: Tensor
    logprobs: Tensor
    tail: Tensor
    overlap: Tensor | None

    def impossible(self) -> Tensor:
        """(N,) bool: the teacher gives no mass at all to one of the ids, or to what lies outside them."""
        return ((self.ids >= 0) & (self.logprobs == -torch.inf)).any(1)


def tokens_of(support: TeacherSupport, told: Mapping[str, Tensor], student: Tensor | None, vocab: int) -> TeacherTokens:
    """told: the answer's arrays for N tokens. student: (N, k) ids that it was asked about, its best or the sampled one; None
    where its sampler does not tell them, and the teacher's are compared. vocab: ids of the student lie below it; what the
    teacher has beyond them is mass outside."""
    if support == "sampled":
        assert student is not None
        return TeacherTokens(student, told["token_logprobs"], _tail(told, "token_tail"), None)
    best, logprobs, tail = _known(told["top_ids"].long(), told["top_logprobs"], _tail(told, "top_tail"), vocab)
    if student is None:
        assert support == "teacher"
        return TeacherTokens(best, logprobs, tail, None)
    shared = among(student, best)
    overlap = (shared & (student >= 0)).sum(1) / (best >= 0).sum(1).clamp(min=1)
    if support == "teacher":
        return TeacherTokens(best, logprobs, tail, overlap)
    if support == "student":
        return TeacherTokens(student, told["token_logprobs"], _tail(told, "token_tail"), overlap)
    new = student.masked_fill(shared, -1)
    at_new = told["token_logprobs"]
    if "top_tail" not in told:
        return TeacherTokens(torch.cat([best, new], 1), torch.cat([logprobs, at_new], 1), tail, overlap)
    left = tail.double().exp() - at_new.double().exp().where(new >= 0, 0.0).sum(1)
    everything = tail == -torch.inf  # nothing was left to begin with
    resolved = everything | (left > _RESOLVED * tail.double().exp())
    whole = (told["token_tail"] == -torch.inf) | ((new >= 0).sum(1) + (best >= 0).sum(1) >= vocab)
    outside = left.clamp(min=torch.finfo(torch.float64).tiny).log().to(tail.dtype)
    outside = torch.where(whole | everything, -torch.inf, torch.where(resolved, outside, tail))
    new = new.masked_fill(~(resolved | whole)[:, None], -1)
    return TeacherTokens(torch.cat([best, new], 1), torch.cat([logprobs, at_new], 1), outside, overlap)


def among(ids: Tensor, others: Tensor) -> Tensor:
    """(N, j) bool: which ids are among those of their row of others (N, k)."""
    ranked = others.sort(1).values
    places = torch.searchsorted(ranked, ids.contiguous()).clamp(max=ranked.shape[1] - 1)
    return ranked.gather(1, places) == ids


def teachable(tokens: TeacherTokens, mask: Tensor, options: DistillConfig) -> Tensor:
    """(S,) bool: completions whose divergence is finite whatever the policy says. mask: (S, C), of the tokens."""
    if options.kind == "reverse" or (options.kind == "jsd" and options.beta == 1):
        return ~torch.zeros_like(mask).masked_scatter(mask, tokens.impossible()).any(1)
    return torch.ones(len(mask), dtype=torch.bool, device=mask.device)


def _known(ids: Tensor, logprobs: Tensor, tail: Tensor, vocab: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same without ids that the student does not have: their mass goes to the tail."""
    foreign = ids >= vocab
    if not bool(foreign.any()):
        return ids, logprobs, tail
    beyond = torch.cat([tail[:, None], logprobs.where(foreign, -torch.inf)], 1).logsumexp(1)
    return ids.masked_fill(foreign, -1), logprobs, beyond


def _tail(told: Mapping[str, Tensor], name: str) -> Tensor:
    return told[name] if name in told else torch.zeros_like(told["logprobs"])
