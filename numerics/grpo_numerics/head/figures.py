"""What is told of a row, made of its sums: the last step of scoring, whoever summed."""

from __future__ import annotations

import math
from collections.abc import Set
from dataclasses import dataclass, fields
from typing import Any, Literal, cast

import torch
from torch import Tensor

from ..stable import entropy_from_odds, logprob_from_odds
from .online import OnlineLogSumExp

Want = Literal["entropy", "logsumexp", "rank", "tail"]
WANTS: frozenset[str] = frozenset({"entropy", "logsumexp", "rank", "tail"})


@dataclass(frozen=True, slots=True)
class HeadScores:
    """Figures of R rows; floats are fp32 (fp64 for fp64 input), nats. What was not asked for is None.

    logprobs: (R,) of the targets. entropy, logsumexp: (R,), of the transformed logits. rank: (R,) int32, tokens with
    a strictly larger logit than the target. top_ids (R, k) int32 and top_logprobs (R, k): the k best, best first.
    token_logprobs: (R, j) of the asked ids, -inf where the id is -1. top_tail, token_tail: (R,) log of the mass outside the
    k best, and outside the distinct asked ids: a sum over all others, right also where it is tiny; -inf where none are left.
    """

    logprobs: Tensor
    entropy: Tensor | None = None
    logsumexp: Tensor | None = None
    rank: Tensor | None = None
    top_ids: Tensor | None = None
    top_logprobs: Tensor | None = None
    token_logprobs: Tensor | None = None
    top_tail: Tensor | None = None
    token_tail: Tensor | None = None

    def first(self, rows: int) -> HeadScores:
        """The figures of the first rows: those that are no padding."""
        figures = (getattr(self, field.name) for field in fields(self))
        return HeadScores(*(cast(Any, None if figure is None else figure[:rows]) for figure in figures))


@dataclass(frozen=True, slots=True)
class Chosen:
    """Single tokens of M rows, None where none were asked for.

    top_ids (M, k) int64 and top (M, k) logits, best first. ids (M, j) int64, -1 for none, and asked (M, j) logits. top_rest,
    ids_rest: the sums over all tokens that are not among them.
    """

    top_ids: Tensor | None = None
    top: Tensor | None = None
    top_rest: OnlineLogSumExp | None = None
    ids: Tensor | None = None
    asked: Tensor | None = None
    ids_rest: OnlineLogSumExp | None = None


def joined(parts: list[HeadScores]) -> HeadScores:
    """The rows of all parts, in order."""
    if len(parts) == 1:
        return parts[0]
    figures = [[getattr(part, field.name) for part in parts] for field in fields(HeadScores)]
    return HeadScores(*(cast(Any, None if of[0] is None else torch.cat(of)) for of in figures))


def figures(
    target: Tensor,
    targets: Tensor,
    others: OnlineLogSumExp,
    above: Tensor | None,
    want: Set[str],
    chosen: Chosen,
) -> HeadScores:
    """Figures of M rows. target, targets: (M,) the targets' logits and ids. others: the sums over all other tokens.
    above: (M,) how many of them are larger."""
    rest = others.logsumexp()
    logprobs = logprob_from_odds(target, rest)
    lost = logprobs.isnan()
    everything = OnlineLogSumExp(len(target), dtype=target.dtype, device=target.device)
    everything.merge(others)
    everything.consume(target[:, None].clone())

    def logprobs_of(logits: Tensor | None, ids: Tensor | None) -> Tensor | None:
        if logits is None or ids is None:
            return None
        plain = (logits - everything.maximum[:, None]) - everything.total.log()[:, None]
        return torch.where(ids == targets[:, None], logprobs[:, None], plain).masked_fill(lost[:, None], math.nan)

    def share(part: OnlineLogSumExp | None) -> Tensor | None:
        if part is None:
            return None
        share = (part.maximum - everything.maximum) + (part.total / everything.total).log()
        return share.masked_fill(part.total == 0, -math.inf).masked_fill(lost, math.nan)

    return HeadScores(
        logprobs,
        entropy=None if others.weighted is None else entropy_from_odds(target, rest, others.entropy()),
        logsumexp=everything.logsumexp().masked_fill(lost, math.nan) if "logsumexp" in want else None,
        rank=None if above is None else above.int().masked_fill(lost, -1),
        top_ids=None if chosen.top_ids is None else chosen.top_ids.int(),
        top_logprobs=logprobs_of(chosen.top, chosen.top_ids),
        token_logprobs=logprobs_of(chosen.asked, chosen.ids),
        top_tail=share(chosen.top_rest),
        token_tail=share(chosen.ids_rest),
    )
