"""A fake engine, a fake tokenizer and ways of running the application around them, in process and over a real socket.

The fake scores are a hash of what they depend on, so that a test can say what the answer must be without a model, and
its latency is an event that the test holds, so that no test waits for time to pass.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import hashlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from fastapi import FastAPI
from grpo_client.masking import filled
from grpo_client.protocol import EXTRA_ARRAYS, Group, ReferenceInfo, ScoreRequest, Status
from grpo_server.app import create_app
from grpo_server.config import ServerConfig
from grpo_server.connections import server_settings
from grpo_server.engine.config import BatchLimits
from grpo_server.engine.contract import (
    Addition,
    BatchScores,
    Change,
    Hosted,
    HostedEngine,
    OnStage,
    Piece,
    PieceScores,
    Tally,
)
from grpo_server.engine.tallies import EveryPiece
from grpo_server.lifecycle import Service

VOCAB = 100
MAX_LENGTH = 64
# The token whose log-prob is not finite.
CURSED = 13
FLOPS_A_TOKEN = 1000.0
PATIENCE = 30.0  # seconds that a test waits for another thread before it fails


def fingerprint(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def fake_scores(print_: str, piece: Piece) -> PieceScores:
    """What the fake reference with this fingerprint answers: a function of each completion and its prompt alone."""
    parts: list[dict[str, np.ndarray]] = []
    status: list[int] = []
    for g, completion in enumerate(piece.completions):
        key = hashlib.blake2b(repr((print_, piece.temperature, piece.normalizer)).encode(), digest_size=8)
        key.update(piece.prompt.tobytes() + b"|" + completion.tobytes())
        rng = np.random.default_rng(int.from_bytes(key.digest(), "little"))
        n = len(completion)
        figures: dict[str, np.ndarray] = {"logprobs": -rng.random(n, dtype=np.float32)}
        figures["logprobs"][completion == CURSED] = np.nan
        for name in sorted(piece.extras - {"tail"}):
            figures[name] = (rng.random(n) * 10).astype(EXTRA_ARRAYS[name])
        if piece.top_k:
            figures["top_ids"] = rng.integers(0, VOCAB, (n, piece.top_k), dtype=np.int32)
            figures["top_logprobs"] = -rng.random((n, piece.top_k), dtype=np.float32)
        if piece.token_ids is not None:
            figures["token_logprobs"] = -rng.random(piece.token_ids[g].shape, dtype=np.float32)
        for name, beside in (("top_tail", "top_ids"), ("token_tail", "token_logprobs")):
            if "tail" in piece.extras and beside in figures:
                figures[name] = -rng.random(n, dtype=np.float32)
        mask = np.ones(n, dtype=np.bool_) if piece.completion_mask is None else piece.completion_mask[g]
        parts.append({name: filled(values[mask], mask) for name, values in figures.items()})
        status.append(Status.NONFINITE if CURSED in completion[mask] else Status.OK)
    flat = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    return PieceScores(flat.pop("logprobs"), np.array(status, dtype=np.uint8), flat)


def expected(request: ScoreRequest, print_: str) -> np.ndarray:
    """(N,) log-probs that the fake reference must give, computed without any server."""
    return np.concatenate(
        [
            fake_scores(print_, Piece(g.prompt, (c,), g.temperature, request.normalizer)).logprobs
            for g in request.groups
            for c in g.completions
        ]
    )


class FakeTokenizer:
    """A character is a token; id 1 begins a text."""

    bos_token, eos_token, pad_token, unk_token, chat_template = "<s>", "</s>", None, None, "fake"

    def __call__(self, text: str | list[str], *, add_special_tokens: bool) -> dict[str, Any]:
        assert isinstance(text, str)
        return {"input_ids": [1] * add_special_tokens + [2 + ord(c) % (VOCAB - 2) for c in text]}

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        return " ".join(str(t) for t in token_ids)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [f"t{i}" for i in ids]

    def apply_chat_template(
        self, conversation: list[dict[str, Any]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        assert not tokenize
        return "".join("<" + m["role"] + ">" + m["content"] for m in conversation) + ">" * add_generation_prompt


class FakeEngine:
    """Deterministic scores; latency by `hold`; failures by `fail`; a record of every batch in `batches`."""

    def __init__(self, name: str = "fake") -> None:
        self._name = name
        self.version = 1
        self.served: str | None = None
        self.tokenizer: FakeTokenizer | None = FakeTokenizer()
        self.batches: list[list[Piece]] = []
        self.prepared: list[list[Piece]] = []
        self.changed_in: list[str] = []
        self.closed = False
        self.fail: Callable[[Sequence[Piece]], BaseException | None] = lambda pieces: None
        self.fail_prepare: Callable[[Sequence[Piece]], BaseException | None] = lambda pieces: None
        self.piece_bytes = 1
        self.counts: Callable[[], Tally] = EveryPiece
        self.batch_tokens = 6144
        self.peak_flops: float | None = None
        self.no_room: str | None = None
        self._open, self._changes = threading.Event(), threading.Event()
        self._open.set()
        self._changes.set()
        self._entered = threading.Semaphore(0)
        self._ready = threading.Semaphore(0)

    @property
    def info(self) -> ReferenceInfo:
        return ReferenceInfo(
            model=self.served or self._name,
            fingerprint=fingerprint(self._name),
            version=self.version,
            dtype="float32",
            mode="exact",
            max_length=MAX_LENGTH,
            vocab_size=VOCAB,
            tier="packed",
            bitwise=True,
        )

    @property
    def hosted(self) -> Hosted:
        return Hosted(self.info, self.tokenizer)

    @property
    def limits(self) -> BatchLimits:
        return BatchLimits(self.batch_tokens, 2**60)

    def bytes_of(self, piece: Piece) -> int:
        return self.piece_bytes

    def tally(self) -> Tally:
        return self.counts()

    def prepare(self, pieces: Sequence[Piece]) -> Any:
        if (error := self.fail_prepare(pieces)) is not None:
            raise error
        self.prepared.append(list(pieces))
        self._ready.release()
        return list(pieces)

    def compute(self, batch: Any) -> BatchScores:
        self.batches.append(batch)
        self._entered.release()
        assert self._open.wait(PATIENCE), "a test holds the engine and never lets go"
        if (error := self.fail(batch)) is not None:
            raise error
        info = self.info
        computed = sum(p.tokens for p in batch)
        return BatchScores(
            [fake_scores(info.fingerprint, p) for p in batch], computed, info, flops=FLOPS_A_TOKEN * computed
        )

    @property
    def reads_files(self) -> bool:
        return False

    def no_room_beside(self, source: str) -> str | None:
        return self.no_room

    def beside(self, change: Change, on_stage: OnStage) -> FakeEngine:
        """Another engine of this kind; it shares what a test holds and looks at."""
        self.changed_in.append(threading.current_thread().name)
        on_stage("load")
        self._entered.release()
        assert self._changes.wait(PATIENCE), "a test holds the next engine and never lets go"
        on_stage("probe")
        new = copy.copy(self)
        new.swap(change.source if change.decay is None else f"{change.source}*{change.decay}")
        new.version = new.version if change.version is None else change.version
        return new

    def adapt(self, addition: Addition, on_stage: OnStage) -> FakeEngine:
        """Another engine of this kind, for the adapter's name."""
        new = FakeEngine.beside(self, Change(addition.source), on_stage)
        new._name, new.served, new.version = f"{self._name}+{addition.source}", addition.name, addition.version
        if addition.fingerprint not in (None, new.info.fingerprint):
            new.version += 1
        return new

    def shares_batches_with(self, other: HostedEngine) -> bool:
        return other is self

    def add(self, addition: Addition, on_stage: OnStage) -> FakeEngine:
        """A further engine of this kind, with a record and a latch of its own."""
        on_stage("load")
        self._entered.release()
        assert self._changes.wait(PATIENCE), "a test holds the next engine and never lets go"
        if "missing" in addition.source:
            raise OSError(f"{addition.source} is not there")
        new = type(self)(addition.source)
        new.served, new.version, new._changes = addition.name, addition.version, self._changes
        if addition.fingerprint not in (None, new.info.fingerprint):
            new.version += 1
        return new

    def swap(self, name: str) -> ReferenceInfo:
        """Be another reference from now on."""
        if "missing" in name:
            raise OSError(f"{name} is not there")
        self._name, self.version, self.closed = name, self.version + 1, False
        return self.info

    def save(self, directory: Path) -> None:
        (directory / "fake").write_text(self._name)

    def close(self) -> None:
        self.closed = True

    def hold(self) -> None:
        """From now on `compute` waits inside until `let_go`."""
        self._open.clear()

    def let_go(self) -> None:
        self._open.set()
        self._changes.set()

    def hold_change(self) -> None:
        """From now on the engine that comes up beside this one waits until `let_go`."""
        self._changes.clear()

    async def entered(self) -> None:
        """Wait until the compute thread is inside `compute` (or a swap) once more than it was waited for."""
        assert await asyncio.to_thread(self._entered.acquire, timeout=PATIENCE), "the engine was never asked"

    async def prepared_one(self) -> None:
        """The same for `prepare`."""
        assert await asyncio.to_thread(self._ready.acquire, timeout=PATIENCE), "nothing was prepared"


class FakeClock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def ids(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def tokens(n: int, start: int = 20) -> np.ndarray:
    """n ids in the vocabulary, none of them cursed."""
    return (start + np.arange(n, dtype=np.int32)) % 60 + 20


def ask(prompt: int, *completions: int, groups: int = 1, start: int = 20, **kw: Any) -> ScoreRequest:
    """A request of equal groups with so many tokens in prompt and completions; start makes it differ from others."""
    group = Group(tokens(prompt, start), tuple(tokens(n, start + i + 1) for i, n in enumerate(completions)))
    return ScoreRequest((group,) * groups, **kw)


def make_config(**settings: Any) -> ServerConfig:
    return ServerConfig(**{"model": "fake", "cache_bytes": 0, **settings})


@contextlib.asynccontextmanager
async def running(app: FastAPI, *, loaded: bool = True) -> AsyncIterator[httpx.AsyncClient]:
    """The application in this event loop, its lifespan entered, its model loaded."""
    async with app.router.lifespan_context(app):
        service: Service = app.state.service
        if loaded:
            await service.loaded.wait()
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=PATIENCE) as client:
            yield client


@contextlib.asynccontextmanager
async def serving(engine: FakeEngine, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """`running` around a fake engine."""
    async with running(create_app(make_config(**settings), lambda: engine)) as client:
        yield client


@contextlib.contextmanager
def real_server(engine: HostedEngine, parser: str = "httptools", **settings: Any) -> Iterator[str]:
    """The application under uvicorn on a free port, in a thread of its own. Yields the base URL."""
    app = create_app(make_config(**settings), lambda: engine)
    started = threading.Event()

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            await app.state.service.loaded.wait()
            started.set()

    how = server_settings(app, parser)
    server = Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, access_log=False, **how))
    thread = threading.Thread(target=server.run, name="uvicorn")
    thread.start()
    try:
        assert started.wait(PATIENCE), "the server did not start"
        host, port = server.servers[0].sockets[0].getsockname()[:2]
        yield f"http://{host}:{port}"
    finally:
        if isinstance(engine, FakeEngine):
            engine.let_go()
        server.should_exit = True
        thread.join()
