"""From hidden states to scores: every predicting row through the fused head, once, with just the extras that were asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from grpo_client.masking import filled
from grpo_client.protocol import EXTRA_ARRAYS, HIDDEN, IntArray, Status
from grpo_numerics import HeadScores, default_tile, score_rows
from grpo_numerics.head.tiles import padded
from grpo_numerics.transfer import Parcel
from torch import Tensor

from .anatomy import Anatomy
from .contract import Piece, PieceScores

Head = Callable[..., HeadScores]  # `grpo_numerics.score_rows`, or the same over several processes


@dataclass(frozen=True, slots=True)
class Question:
    """What pieces ask that the head answers in one pass. spans: of each piece in the batch's rows, in order; whole: they are
    all of these rows. parts: with the head, where it is not the model's own."""

    members: list[int]
    spans: list[range]
    whole: bool
    asked: dict[str, Any]
    parts: Anatomy | None


@dataclass(frozen=True, slots=True)
class Questions:
    """All that the head is asked of a batch. values: on their way to the head's device, by question and name."""

    passes: list[Question]
    values: Parcel[tuple[int, str]]

    @classmethod
    def of(cls, pieces: Sequence[Piece], targets: IntArray, parts: Sequence[Anatomy] = ()) -> Questions:
        """targets: (M,) over all pieces. parts: with the head of each piece, unless all have the model's own. May run beside
        the thread that computes."""
        sizes = [p.asked_tokens for p in pieces]
        ends = np.cumsum(sizes)
        passes: list[Question] = []
        values: dict[tuple[int, str], npt.NDArray[np.generic]] = {}
        for n, alike in enumerate(_by_question(pieces, parts)):
            spans = [range(ends[i] - sizes[i], ends[i]) for i in alike]
            rows = np.concatenate([np.arange(s.start, s.stop) for s in spans])
            first = pieces[alike[0]]
            asked: dict[str, Any] = {
                "normalizer": first.normalizer,
                "want": first.extras - {HIDDEN},
                "top_k": first.top_k,
            }
            if all(pieces[i].temperature == 1.0 for i in alike):
                asked["temperature"] = 1.0  # dividing by it would change no bit
            else:
                temperatures = [np.full(len(s), pieces[i].temperature) for i, s in zip(alike, spans, strict=True)]
                values[n, "temperature"] = np.concatenate(temperatures).astype(np.float32)
            values[n, "rows"] = rows
            values[n, "targets"] = targets[rows].astype(np.int64)
            if (ids := _asked_ids([pieces[i] for i in alike])) is not None:
                values[n, "token_ids"] = ids
            own = parts[alike[0]] if parts else None
            passes.append(Question(alike, spans, len(rows) == len(targets), asked, own))
        return cls(passes, Parcel(values))


def score_pieces(
    pieces: Sequence[Piece],
    rows: Tensor,
    questions: Questions,
    parts: Anatomy,
    head: Head = score_rows,
) -> list[PieceScores]:
    """rows (M, D) hidden states of the tokens that are asked. Pieces that ask alike share one pass of `head`; all answers come
    back in one copy."""
    passes = fetched(head_passes(rows, questions, parts, head))
    answers: list[PieceScores | None] = [None] * len(pieces)
    for question, scores in zip(questions.passes, passes, strict=True):
        end = 0
        for i, span in zip(question.members, question.spans, strict=True):
            start, end = end, end + len(span)
            answers[i] = answer = _answer(pieces[i], scores, slice(start, end))
            if HIDDEN in pieces[i].extras:
                answer.extras[HIDDEN] = _hidden(pieces[i], rows[span.start : span.stop])
    return [a for a in answers if a is not None]


def head_passes(rows: Tensor, questions: Questions, parts: Anatomy, head: Head) -> list[HeadScores]:
    """The answers, where the head is. Nothing here waits for a GPU."""
    there = questions.values.on(rows.device)
    return [
        head(
            rows if question.whole else rows[there[n, "rows"]],
            (question.parts or parts).weight,
            there[n, "targets"],
            spec=(question.parts or parts).spec,
            token_ids=there.get((n, "token_ids")),
            checked=True,
            **{"temperature": there.get((n, "temperature")), **question.asked},
        )
        for n, question in enumerate(questions.passes)
    ]


def fetched(passes: Sequence[HeadScores]) -> list[HeadScores]:
    """The same figures on the host, all in one copy, for which it waits."""
    names = [field.name for field in fields(HeadScores)]
    figures = [
        (n, name, figure) for n, p in enumerate(passes) for name in names if (figure := getattr(p, name)) is not None
    ]
    if not figures or figures[0][2].device.type == "cpu":
        return list(passes)
    flat = torch.cat([figure.contiguous().view(-1).view(torch.uint8) for _, _, figure in figures]).cpu()
    here: list[dict[str, Any]] = [{} for _ in passes]
    for (n, name, figure), part in zip(figures, flat.split([f.nbytes for _, _, f in figures]), strict=True):
        here[n][name] = part.clone().view(figure.dtype).view(figure.shape)
    return [HeadScores(**scores) for scores in here]


def in_whole_blocks(head: Head) -> Head:
    """`head` that always multiplies as many rows as a tile has: what is missing is made up by rows of zeros."""

    def score(
        rows: Tensor, weight: Tensor, targets: Tensor, *, temperature: float | Tensor, **asked: Any
    ) -> HeadScores:
        tile = default_tile(weight.shape[1])
        height = -(-len(rows) // tile.rows) * tile.rows
        if (ids := asked.pop("token_ids")) is not None:
            asked["token_ids"] = padded(ids, height)
        if isinstance(temperature, Tensor):
            temperature = padded(temperature, height, 1.0)
        padded_scores = head(padded(rows, height), weight, padded(targets, height), temperature=temperature, **asked)
        return padded_scores.first(len(rows))

    return score


def _by_question(pieces: Sequence[Piece], parts: Sequence[Anatomy]) -> Iterator[list[int]]:
    """Indices of pieces that the head can score in one pass; temperatures may differ."""
    alike: dict[object, list[int]] = {}
    for i, piece in enumerate(pieces):
        width = None if piece.token_ids is None else next((t.shape[1] for t in piece.token_ids), 0)
        head = id(parts[i].weight) if parts else 0
        alike.setdefault((piece.normalizer, piece.extras, piece.top_k, width, head), []).append(i)
    yield from alike.values()


def _asked_ids(pieces: Sequence[Piece]) -> npt.NDArray[np.int64] | None:
    rows = [
        ids if piece.completion_mask is None else ids[piece.completion_mask[g]]
        for piece in pieces
        for g, ids in enumerate(piece.token_ids or ())
    ]
    return np.concatenate(rows).astype(np.int64) if rows else None


def _hidden(piece: Piece, rows: Tensor) -> npt.NDArray[np.uint16]:
    """(N, D) bfloat16 by its bits."""
    bits = rows.to(torch.bfloat16).view(torch.int16).cpu().numpy().view(np.uint16)
    return filled(bits, None if piece.completion_mask is None else piece.asked)


def _answer(piece: Piece, scores: HeadScores, span: slice) -> PieceScores:
    mask = None if piece.completion_mask is None else piece.asked
    logprobs = scores.logprobs[span].cpu().numpy()
    bad = ~np.isfinite(logprobs)
    if mask is not None:
        bad = filled(bad.astype(np.int8), mask) == 1
    extras: dict[str, npt.NDArray[np.generic]] = {}
    for name, dtype in EXTRA_ARRAYS.items():
        if (values := getattr(scores, name)) is not None:
            extras[name] = filled(values[span].cpu().numpy().astype(dtype, copy=False), mask)
    ends = np.cumsum([len(c) for c in piece.completions], dtype=np.int64)
    status = np.array(
        [
            Status.NONFINITE if bad[end - len(c) : end].any() else Status.OK
            for c, end in zip(piece.completions, ends, strict=True)
        ],
        dtype=np.uint8,
    )
    return PieceScores(filled(logprobs, mask), status, extras)
