"""What there is to know about a request before it can be entered: its cuts with their price, and where the answer grows.

Nothing here touches the scheduler's state, so that it may run on any thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace

from grpo_client.protocol import CompletionScores, ScoreRequest

from grpo_server.engine.contract import Engine
from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.scheduler.assembly import Assembly, host_bytes
from grpo_server.scheduler.cutting import Cut, cut
from grpo_server.scheduler.families import together


@dataclass(frozen=True, slots=True)
class Plan:
    """cuts: what is to be computed, of so many tokens together. assembly: the answer, what was found already in its place.
    wanted: completions to compute. host_bytes: what request and answer occupy."""

    cuts: deque[Cut]
    tokens: int
    assembly: Assembly
    wanted: int
    host_bytes: int


def plan(
    request: ScoreRequest,
    found: Mapping[int, CompletionScores],
    max_tokens: int,
    max_bytes: int | None,
    engine: Engine,
) -> Plan:
    """found: scores known by their flat index. max_tokens, max_bytes: of a batch. Raises ServiceError (413) for a cut that no
    batch holds."""
    hidden_size = engine.info.hidden_size or 0
    assembly = Assembly(request, hidden_size)
    for place, scores in found.items():
        assembly.place((place,), scores)
    wanted = {i for i, length in enumerate(assembly.lengths) if length and i not in found}
    priced = [_priced(c, engine.bytes_of(c.piece), max_bytes) for c in cut(request, wanted, max_tokens)]
    cuts = deque(together(priced, max_tokens, max_bytes, engine.tally))
    return Plan(cuts, sum(c.tokens for c in cuts), assembly, len(wanted), host_bytes(request, hidden_size))


def _priced(c: Cut, nbytes: int, limit: int | None) -> Cut:
    if limit is not None and nbytes > limit:
        raise ServiceError(
            ErrorCode.REQUEST_TOO_LARGE,
            f"scoring {c.tokens} tokens of one group would take {nbytes} bytes of memory and {limit} may be used "
            "(--max-batch-bytes); send shorter sequences, or start the server with a smaller --max-batch-tokens",
            param="groups",
        )
    return replace(c, bytes=nbytes)
