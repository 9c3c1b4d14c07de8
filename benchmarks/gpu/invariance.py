"""The promise of invariant mode, tried at full size: scores bit for bit alone, in a full batch, and in another order; what it
costs next to fast mode."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from grpo_server.engine import Piece
from grpo_server.engine.engine import TorchEngine

from .bench import Bench
from .model import speed
from .models import engine_of, piece_of, random_model
from .stages import Line


def run(bench: Bench) -> Iterator[Line]:
    model = random_model(bench)
    fast = speed(bench, engine_of(bench, model, "fast"), piece_of(bench), times=3)
    engine = engine_of(bench, model, "invariant")
    yield {"what": "claim", "mode": engine.info.mode, "bitwise": engine.info.bitwise, "tier": engine.info.tier}
    yield {"what": "bits", **compare(bench, engine)}
    line = speed(bench, engine, piece_of(bench), times=3)
    yield {"what": "cost", **line, "times_fast": round(line["ms"] / fast["ms"], 3)}


def compare(bench: Bench, engine: TorchEngine) -> Line:
    """The group in a batch with others before and behind, in reverse, and each of its completions by itself."""
    piece = piece_of(bench)
    few = Piece(piece.prompt, piece.completions[:2], 1.0)
    others = [_other(bench, seed) for seed in range(100, 106)]
    alone = _scores(engine, [few])[0]
    batches = {"first": [few, *others], "last": [*others, few], "between": [*others[:3], few, *others[3:]]}
    line: Line = {}
    for name, batch in batches.items():
        mine = next(s for p, s in zip(batch, _scores(engine, batch), strict=True) if p is few)
        line[name] = bool(np.array_equal(mine, alone))
    whole = _scores(engine, [piece])[0][: len(alone)]
    one = _scores(engine, [Piece(piece.prompt, piece.completions[:1], 1.0)])[0]
    return line | {
        "with_all_its_siblings": bool(np.array_equal(whole, alone)),
        "a_completion_by_itself": bool(np.array_equal(one, alone[: len(one)])),
    }


def _other(bench: Bench, seed: int) -> Piece:
    rng = np.random.default_rng(seed)
    s = bench.shape
    prompt = bench.tokens(int(rng.integers(1, s.prompt)), seed)
    lengths = rng.integers(1, s.completion, 3)
    return Piece(prompt, tuple(bench.tokens(int(n), seed + 1 + i) for i, n in enumerate(lengths)), 1.0)


def _scores(engine: TorchEngine, pieces: list[Piece]) -> list[np.ndarray]:
    return [p.logprobs for p in engine.compute(engine.prepare(pieces)).pieces]
