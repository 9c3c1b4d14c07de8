"""What a batch's scores are to the requests in it: placed in their answers, kept in the cache, counted."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from grpo_server.engine.contract import BatchScores, Engine
from grpo_server.scheduler.cache import ResultCache
from grpo_server.scheduler.events import BatchDone, Share
from grpo_server.scheduler.job import Job
from grpo_server.scheduler.queue import Entry

# Completions of a batch that are handed out before others have their turn on the event loop: some milliseconds.
PLACED_AT_ONCE = 256


def jobs_of(entries: Sequence[Entry]) -> list[Job]:
    """The requests that have a part in the batch, each once."""
    return list(dict.fromkeys(e.job for e in entries))


def engines_of(entries: Sequence[Entry]) -> list[Engine]:
    """Who hosts the references of these requests, each once."""
    return list(dict.fromkeys(e.job.engine for e in entries))


def tokens_of(entries: Sequence[Entry]) -> int:
    """Of a batch, as priced."""
    return sum(e.cut.tokens for e in entries)


async def place_scores(entries: Sequence[Entry], scores: BatchScores, cache: ResultCache) -> None:
    """Put the scores where they belong, in turns with whatever else the event loop has to do. A request of another reference
    gets none of them."""
    tokens = tokens_of(entries)
    placed = 0
    for number, (entry, piece_scores) in enumerate(zip(entries, scores.pieces, strict=True)):
        job, places = entry.job, entry.cut.places
        if job.reference != scores.reference_of(number):
            continue
        job.assembly.place(places, piece_scores)
        for place in places:
            if job.keys:
                cache.put(job.keys[place], job.assembly.completion(place))
            if (placed := placed + 1) % PLACED_AT_ONCE == 0:
                await asyncio.sleep(0)
        job.outstanding -= 1
        # The engine counts a batch as a whole: each cut bears its share of it.
        job.computed_tokens += scores.computed_tokens * entry.cut.tokens / tokens


def batch_done(entries: Sequence[Entry], scores: BatchScores, seconds: float) -> BatchDone:
    """The batch as the metrics see it."""
    whose: dict[Engine, list[Entry]] = {}
    for entry in entries:
        whose.setdefault(entry.job.engine, []).append(entry)
    return BatchDone(
        shares=tuple(Share(own[0].job.reference, tokens_of(own), _scored(own)) for own in whose.values()),
        requests=len(jobs_of(entries)),
        tokens=tokens_of(entries),
        computed_tokens=scores.computed_tokens,
        scored_tokens=_scored(entries),
        seconds=seconds,
        splits=scores.splits,
        flops=scores.flops,
    )


def _scored(entries: Sequence[Entry]) -> int:
    return sum(entry.cut.piece.asked_tokens for entry in entries)
