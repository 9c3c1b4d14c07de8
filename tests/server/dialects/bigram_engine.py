"""A reference small enough to be its own oracle: the logits depend on the sum of all ids so far, so that a score that is
off by one position, by one prompt or by the temperature is another number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from grpo_client.protocol import Status
from grpo_server.engine.contract import BatchScores, Piece, PieceScores
from server_fakes import CURSED, VOCAB, FakeEngine

STATES = 97


class BigramEngine(FakeEngine):
    """Consistent figures: ranks, best tokens and asked ids come from the same distribution as the log-probs."""

    def __init__(self) -> None:
        super().__init__()
        self._table = np.random.default_rng(7).normal(0, 3, (STATES, VOCAB))

    def distribution(self, prefix: Sequence[int], temperature: float = 1.0) -> np.ndarray:
        """(VOCAB,) log-probs of the next token, fp32."""
        logits = self._table[int(np.sum(prefix)) % STATES] / np.float32(temperature)
        return (logits - np.logaddexp.reduce(logits)).astype(np.float32)

    def logprobs(self, ids: Sequence[int], temperature: float = 1.0, start: int = 1) -> list[float]:
        """Of the tokens from position start on."""
        return [float(self.distribution(ids[:t], temperature)[ids[t]]) for t in range(start, len(ids))]

    def best(self, ids: Sequence[int]) -> int:
        """The likeliest token after these."""
        return int(self.distribution(ids).argmax())

    def compute(self, batch: Any) -> BatchScores:
        self.batches.append(batch)
        return BatchScores([self._score(piece) for piece in batch], sum(p.tokens for p in batch), self.info)

    def _score(self, piece: Piece) -> PieceScores:
        rows: dict[str, list[Any]] = {"logprobs": []}
        status: list[int] = []
        for g, completion in enumerate(piece.completions):
            for t, token in enumerate(completion.tolist()):
                scores = self.distribution([*piece.prompt.tolist(), *completion[:t].tolist()], piece.temperature)
                order = np.argsort(-scores, kind="stable")[: piece.top_k]
                rows["logprobs"].append(np.nan if token == CURSED else scores[token])
                if "rank" in piece.extras:
                    rows.setdefault("rank", []).append(int((scores > scores[token]).sum()))
                if piece.top_k:
                    rows.setdefault("top_ids", []).append(order)
                    rows.setdefault("top_logprobs", []).append(scores[order])
                if piece.token_ids is not None:
                    asked = piece.token_ids[g][t]
                    rows.setdefault("token_logprobs", []).append(np.where(asked < 0, -np.inf, scores[asked]))
            status.append(Status.NONFINITE if CURSED in completion else Status.OK)
        n = len(rows["logprobs"])
        shapes = {"top_ids": (n, piece.top_k), "top_logprobs": (n, piece.top_k)}
        figures = {
            name: np.array(values, dtype=np.int32 if name in ("rank", "top_ids") else np.float32).reshape(
                shapes.get(name, (n, -1) if name == "token_logprobs" else (n,))
            )
            for name, values in rows.items()
        }
        return PieceScores(figures.pop("logprobs"), np.array(status, dtype=np.uint8), figures)
