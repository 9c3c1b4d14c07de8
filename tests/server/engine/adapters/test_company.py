"""Pieces of a base and of several of its adapters in one batch: each has the bits that it has alone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from checkpoints import VOCAB, saved
from grpo_client.protocol import Group, ScoreRequest
from grpo_server.engine import Piece
from grpo_server.engine.adapters.engine import AdaptedEngine
from grpo_server.engine.contract import BatchScores
from grpo_server.engine.engine import TorchEngine
from grpo_server.scheduler import Scheduler, SchedulerLimits
from grpo_server.scheduler.events import BatchDone, Silence
from tuned import ALL, adapted, engine_of, pieces_of, put_on, scores

pytest.importorskip("peft")

KINDS = [
    {"target_modules": ALL},
    {"r": 3, "use_rslora": True},
    {"target_modules": ["q_proj", "lm_head", "embed_tokens"]},
    {"target_modules": ALL, "modules_to_save": ["lm_head", "embed_tokens"]},
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> TorchEngine:
    return engine_of(saved(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def adapters(base: TorchEngine, tmp_path_factory: pytest.TempPathFactory) -> list[AdaptedEngine]:
    source = Path(base.info.model)
    paths = [adapted(tmp_path_factory.mktemp("a"), source, seed, **KINDS[seed % len(KINDS)]) for seed in range(8)]
    return [put_on(base, path, f"a{n}") for n, path in enumerate(paths)]


class Batches(Silence):
    """Counts the requests in each batch."""

    def __init__(self) -> None:
        self.requests: list[int] = []

    def batch_done(self, batch: BatchDone) -> None:
        self.requests.append(batch.requests)


def together(engines: list[TorchEngine | AdaptedEngine], pieces: list[Piece], whose: list[int]) -> BatchScores:
    asked = [engines[n] for n in whose]
    return asked[0].compute(asked[0].prepare(pieces, asked))


def test_bits_alone_and_in_every_company(base: TorchEngine, adapters: list[AdaptedEngine]) -> None:
    engines = [base, *adapters]
    pieces = pieces_of(groups=3)
    alone = [[scores(engine, [piece]) for piece in pieces] for engine in engines]
    rng = np.random.default_rng(0)
    for company in ([0, 1], [3, 2], [4, 0, 4], list(range(9)), list(range(9))[::-1]):
        asked = [(n, p) for n in company for p in range(len(pieces))]
        order = rng.permutation(len(asked))
        batch = together(engines, [pieces[asked[i][1]] for i in order], [asked[i][0] for i in order])
        for i, found in zip(order, batch.pieces, strict=True):
            n, p = asked[i]
            assert np.array_equal(found.logprobs, alone[n][p]), engines[n].info.model
        assert [r.fingerprint for r in batch.references or ()] == [engines[asked[i][0]].info.fingerprint for i in order]


def test_a_prompt_that_two_have_in_common_has_rows_for_each(base: TorchEngine, adapters: list[AdaptedEngine]) -> None:
    [piece] = pieces_of(groups=1)
    once = base.prepare([piece]).tokens
    assert adapters[0].prepare([piece, piece], [adapters[0], adapters[0]]).tokens == once
    assert adapters[0].prepare([piece, piece, piece], [adapters[0], base, adapters[1]]).tokens == 3 * once


def test_who_shares_batches(base: TorchEngine, adapters: list[AdaptedEngine], tmp_path: Path) -> None:
    another = engine_of(saved(tmp_path / "base", hidden_size=64))
    for engine in (base, *adapters):
        for other in (base, *adapters):
            assert engine.shares_batches_with(other)
        assert not engine.shares_batches_with(another)
        assert not another.shares_batches_with(engine)


def test_a_batch_that_does_not_fit_is_halved_with_its_owners(
    base: TorchEngine, adapters: list[AdaptedEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = AdaptedEngine.compute_whole
    pieces, engines = pieces_of(groups=3), [base, adapters[0], adapters[2]]
    alone = [scores(engine, [piece]) for engine, piece in zip(engines, pieces, strict=True)]

    def tight(self: AdaptedEngine, batch: object) -> BatchScores:
        if len(batch.pieces) > 1 or len(batch.pieces[0].completions) > 2:  # pyright: ignore[reportAttributeAccessIssue]
            raise MemoryError
        return whole(self, batch)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(AdaptedEngine, "compute_whole", tight)
    batch = base.compute(base.prepare(pieces, engines))
    for found, expected in zip(batch.pieces, alone, strict=True):
        assert np.array_equal(found.logprobs, expected)
    assert [r.model for r in batch.references or ()] == [engine.info.model for engine in engines]


def test_ten_references_behind_one_scheduler(base: TorchEngine, adapters: list[AdaptedEngine], tmp_path: Path) -> None:
    """Requests in turns, their batches mixed: bitwise those of each alone, under the name of who computed them."""
    engines = [base, *adapters, engine_of(saved(tmp_path / "base", hidden_size=64))]
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, VOCAB, 7, dtype=np.int32) for _ in range(3)]
    completions = [rng.integers(0, VOCAB, 5, dtype=np.int32) for _ in range(4)]

    def request(n: int) -> ScoreRequest:
        return ScoreRequest(groups=[Group(prompts[n % 3], [completions[(n + i) % 4] for i in range(2)], 1.0)])

    batches = Batches()

    async def answers() -> list[tuple[str, np.ndarray]]:
        async with Scheduler(base, SchedulerLimits(max_batch_tokens=256), listener=batches) as scheduler:
            asked = [(n, engine) for n in range(3) for engine in engines]
            found = await asyncio.gather(*(scheduler.submit(request(n), engine=engine) for n, engine in asked))
        return [(answer.reference.fingerprint, answer.logprobs) for answer in found]

    found = asyncio.run(answers())
    assert max(batches.requests) > 3, "no batch was of several references"
    expected = [(engine, request(n)) for n in range(3) for engine in engines]
    for (fingerprint, logprobs), (engine, asked) in zip(found, expected, strict=True):
        pieces = [Piece(g.prompt, tuple(g.completions), 1.0) for g in asked.groups]
        assert fingerprint == engine.info.fingerprint
        assert np.array_equal(logprobs, scores(engine, pieces))
