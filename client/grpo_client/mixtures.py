"""All teachers as one distribution: log p = logsumexp over the teachers of log w + log p, of the same tokens by all.

The best tokens of a mixture are found as Fagin's threshold algorithm does (Fagin, Lotem, Naor 2003): each teacher is asked for
its k best, then all for the union of those. A token outside the union is at most as likely to each teacher as that one's last,
so the mixture's best are among the union where its k-th is at least as likely as the mixture of the lasts. Where it is not,
twice as many are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from grpo_client.errors import ProtocolError
from grpo_client.masking import PAD
from grpo_client.protocol import ScoreRequest, ScoreResult, Status, figure_dtype, rounded
from grpo_client.routing import Plan, Results, joined, known

_ASKED: Final = ("token_logprobs", "token_tail")
_SAME: Final = 1e-5  # nats: what float32 leaves of a log-prob, between which no order is known
Figures = npt.NDArray[Any]


def mixed(request: ScoreRequest, mixture: Mapping[str, float], teachers: Mapping[str, Any]) -> Plan:
    """Every group by all teachers of a mixture, with their weights. Raises ProtocolError for what cannot be mixed."""
    weights = {known(name, teachers, "mixture"): float(weight) for name, weight in mixture.items()}
    if not all(w > 0 for w in weights.values()) or not math.isclose(sum(weights.values()), 1.0, abs_tol=1e-6):
        raise _refused(f"mixture has the weights {list(weights.values())}; they must be above 0 and add up to 1")
    if others := request.extras - {"tail"}:
        raise _refused(
            f"a mixture has no {' and no '.join(sorted(others))}, only log-probs, top_k, token_ids and tail; ask one teacher "
            "at a time for them, by teacher="
        )
    return _mixed(request, {name: math.log(weight) for name, weight in weights.items()})


def _refused(why: str) -> ProtocolError:
    return ProtocolError(why, "mixture", "wrong_value", 422)


def _mixed(request: ScoreRequest, logs: Mapping[str, float]) -> Plan:
    full = replace(request, top_dtype="float32")  # rounded once, at the end
    first = yield dict.fromkeys(logs, full)
    rounds = [first]
    extras = {name: _mix(first, logs, name) for name in _ASKED if name in next(iter(first.values())).extras}
    if request.top_k and request.completion_lengths.any():
        extras |= yield from _best(full, logs, rounds)
    elif request.top_k:
        extras = dict(next(iter(first.values())).extras)  # of no token
    return joined(
        rounds,
        tuple(logs),
        logprobs=_sum((result.logprobs for result in first.values()), logs).astype(np.float32),
        status=_status(rounds),
        extras={name: rounded(values, figure_dtype(name, request.top_dtype)) for name, values in extras.items()},
    )


def _best(
    request: ScoreRequest, logs: Mapping[str, float], rounds: list[Results]
) -> Generator[Mapping[str, ScoreRequest], Results, dict[str, Figures]]:
    """The best tokens of the mixture, and the mass outside them; adds what was answered to `rounds`."""
    most = request.top_k
    while True:
        found = rounds[-1]
        sizes = {name: result.reference.vocab_size for name, result in found.items()}
        union = _union([result.extras["top_ids"] for result in found.values()])
        rounds.append((yield {name: _asking(request, union, size) for name, size in sizes.items()}))
        ids, logprobs, rest = _picked(union, _mix(rounds[-1], logs, "token_logprobs"), request.top_k)
        outside = _sum((_last(result) for result in found.values()), logs)
        if (logprobs[:, -1] >= outside - _SAME)[_usable(rounds)].all():
            break
        most = 2 * most
        groups = tuple(replace(group, token_ids=None) for group in request.groups)
        wider = replace(request, groups=groups, extras=frozenset())
        rounds.append((yield {name: replace(wider, top_k=min(most, size)) for name, size in sizes.items()}))
    best: dict[str, Figures] = {"top_ids": ids, "top_logprobs": logprobs}
    if "tail" in request.extras:
        best["top_tail"] = _logsumexp([rest, _mix(rounds[-1], logs, "token_tail")])
    return best


def _union(ids: list[Figures]) -> Figures:
    """(N, W) the distinct ids of each position, in ascending order behind padding."""
    union = np.concatenate(ids, axis=1)
    union.sort(axis=1)
    twice = union[:, 1:] == union[:, :-1]
    union[:, 1:][twice] = PAD
    union.sort(axis=1)
    width = int((union != PAD).sum(axis=1).max(initial=ids[0].shape[1]))  # wide enough where all is padding
    return union[:, -width:]


def _asking(request: ScoreRequest, ids: Figures, vocab_size: int) -> ScoreRequest:
    """The request for these (N, W) ids and the mass outside them instead of what it asks for. An id beyond a teacher's
    vocabulary has no mass there, as padding has none."""
    within = np.where(ids < vocab_size, ids, np.int32(PAD))
    rows = iter(np.split(within, np.cumsum(request.completion_lengths)[:-1]))
    groups = tuple(replace(g, token_ids=tuple(next(rows) for _ in g.completions)) for g in request.groups)
    return replace(request, groups=groups, top_k=0)


def _picked(ids: Figures, logprobs: Figures, k: int) -> tuple[Figures, Figures, Figures]:
    """Of (N, W) ids the k best first, the smaller id where two are alike, and (N,) the mass of the others."""
    order = np.lexsort((ids == PAD, -logprobs), axis=1)
    ordered = np.take_along_axis(logprobs, order, axis=1)
    rest = _logsumexp(ordered[:, k:], axis=1)
    return np.take_along_axis(ids, order[:, :k], axis=1), ordered[:, :k], rest


def _last(result: ScoreResult) -> Figures:
    """(N,) what a token that is not among a teacher's best has at most."""
    top = result.extras["top_logprobs"]
    return np.full(len(top), -np.inf) if top.shape[-1] >= result.reference.vocab_size else top[:, -1]


def _mix(results: Results, logs: Mapping[str, float], name: str) -> Figures:
    return _sum((result.extras[name] for result in results.values()), logs)


def _sum(values: Iterable[Figures], logs: Mapping[str, float]) -> Figures:
    """In float64: of log-probs by every teacher the mixture's."""
    parts = [one.astype(np.float64) + log for one, log in zip(values, logs.values(), strict=True)]
    return _logsumexp(parts)


def _logsumexp(values: Figures | list[Figures], axis: int = 0) -> Figures:
    with np.errstate(invalid="ignore"):  # NaN, where a teacher failed, stays NaN
        return np.logaddexp.reduce(values, axis=axis)


def _status(rounds: list[Results]) -> npt.NDArray[np.uint8]:
    return np.max([result.status for results in rounds for result in results.values()], axis=0)


def _usable(rounds: list[Results]) -> npt.NDArray[np.bool_]:
    """(N,) where there are figures."""
    one = next(iter(rounds[0].values()))
    usable = np.repeat(_status(rounds) == Status.OK, one.completion_lengths)
    return usable if one.completion_mask is None else usable & one.completion_mask
