"""From hidden states to scores: every predicting row through the fused head, once, with just the extras that were asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from grpo_client.protocol import EXTRA_ARRAYS, Status
from grpo_numerics import HeadScores, default_tile, score_rows
from grpo_numerics.head.tiles import padded
from torch import Tensor

from .anatomy import Anatomy
from .contract import Piece, PieceScores

Head = Callable[..., HeadScores]  # `grpo_numerics.score_rows`, or the same over several processes


def score_pieces(
    pieces: Sequence[Piece],
    rows: Tensor,
    targets: Tensor,
    parts: Anatomy,
    head: Head = score_rows,
) -> list[PieceScores]:
    """rows (N, D) hidden states, targets (N,) token ids. Pieces that ask alike share one pass of `head`."""
    sizes = [sum(len(c) for c in p.completions) for p in pieces]
    ends = np.cumsum(sizes)
    answers: list[PieceScores | None] = [None] * len(pieces)
    for alike in _by_question(pieces):
        spans = [range(ends[i] - sizes[i], ends[i]) for i in alike]
        index = torch.from_numpy(np.concatenate([np.arange(s.start, s.stop) for s in spans])).to(rows.device)
        first = pieces[alike[0]]
        scores = head(
            rows if len(index) == len(rows) else rows[index],
            parts.weight,
            targets.to(rows.device)[index],
            spec=parts.spec,
            temperature=torch.tensor(
                [pieces[i].temperature for i, s in zip(alike, spans, strict=True) for _ in s], device=rows.device
            ),
            normalizer=first.normalizer,
            want=first.extras,
            top_k=first.top_k,
            token_ids=_asked_ids([pieces[i] for i in alike]),
        )
        end = 0
        for i, span in zip(alike, spans, strict=True):
            start, end = end, end + len(span)
            answers[i] = _answer(pieces[i], scores, slice(start, end))
    return [a for a in answers if a is not None]


def in_whole_blocks(head: Head) -> Head:
    """`head` that always multiplies as many rows as a tile has: what is missing is made up by rows of zeros."""

    def score(rows: Tensor, weight: Tensor, targets: Tensor, *, temperature: Tensor, **asked: Any) -> HeadScores:
        tile = default_tile(weight.shape[1])
        height = -(-len(rows) // tile.rows) * tile.rows
        if (ids := asked.pop("token_ids")) is not None:
            asked["token_ids"] = padded(ids, height)
        padded_scores = head(
            padded(rows, height), weight, padded(targets, height), temperature=padded(temperature, height, 1.0), **asked
        )
        return padded_scores.first(len(rows))

    return score


def _by_question(pieces: Sequence[Piece]) -> Iterator[list[int]]:
    """Indices of pieces that the head can score in one pass; temperatures may differ."""
    alike: dict[object, list[int]] = {}
    for i, piece in enumerate(pieces):
        width = None if piece.token_ids is None else next((t.shape[1] for t in piece.token_ids), 0)
        alike.setdefault((piece.normalizer, piece.extras, piece.top_k, width), []).append(i)
    yield from alike.values()


def _asked_ids(pieces: Sequence[Piece]) -> Tensor | None:
    rows = [ids for piece in pieces for ids in piece.token_ids or ()]
    return torch.from_numpy(np.concatenate(rows)).long() if rows else None


def _answer(piece: Piece, scores: HeadScores, span: slice) -> PieceScores:
    logprobs = scores.logprobs[span].cpu().numpy()
    extras: dict[str, npt.NDArray[np.generic]] = {}
    for name, dtype in EXTRA_ARRAYS.items():
        if (values := getattr(scores, name)) is not None:
            extras[name] = values[span].cpu().numpy().astype(dtype, copy=False)
    bad = ~np.isfinite(logprobs)
    ends = np.cumsum([len(c) for c in piece.completions], dtype=np.int64)
    status = np.array(
        [
            Status.NONFINITE if bad[end - len(c) : end].any() else Status.OK
            for c, end in zip(piece.completions, ends, strict=True)
        ],
        dtype=np.uint8,
    )
    return PieceScores(logprobs, status, extras)
