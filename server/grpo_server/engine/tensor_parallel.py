"""One reference over several processes, started by torchrun: each holds a slice of every layer, by transformers' own plan.

Rank 0 leads: it serves, and sends what it is about to compute to the others, which follow in the same order.

    leader   prepare -> send the pieces -> forward, together -> its share of the head's rows -> gather
    follower          -> receive them   -> forward, together -> its share of the head's rows -> gather

The head is not cut along the vocabulary: every rank has it whole and scores its share of the rows, so no partial softmax
is merged, and a row's figures are those of one process.

Memory that runs out on one rank leaves the others in the middle of a sum. Nothing can be retried then; the process ends
with the reason, and torchrun ends (or restarts, `--max-restarts`) the rest.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
import torch.distributed as dist
from grpo_client.protocol import ReferenceInfo
from grpo_numerics import HeadScores, score_rows
from torch import Tensor

from .config import BatchLimits
from .contract import Addition, BatchScores, Change, Hosted, HostedEngine, OnStage, Piece, Tally
from .prepared import Prepared

log = logging.getLogger(__name__)

# A follower waits for the next batch as long as nobody asks.
_PATIENCE = timedelta(days=365)
_STOP = 0  # instead of a message's length


class Ranks:
    """The process group of this run, and the quiet channel over which the leader tells the others what comes."""

    def __init__(self) -> None:
        """Join the group that torchrun describes. Raises ValueError when the process was not started by it."""
        if "WORLD_SIZE" not in os.environ or "RANK" not in os.environ:
            raise ValueError(
                "tensor_parallel: start the server once per device by torchrun: "
                "torchrun --nproc-per-node 2 -m grpo_server --tensor-parallel --model ..."
            )
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if torch.cuda.is_available():
            torch.cuda.set_device(self.local_rank)
        if not dist.is_initialized():
            dist.init_process_group()
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        # beside the main group, whose backend may spin on the device while it waits
        self._channel: Any = dist.new_group(backend="gloo", timeout=_PATIENCE)

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def send(self, pieces: Sequence[Piece]) -> None:
        """Leader: tell the others what to compute next."""
        message = torch.frombuffer(bytearray(encode(pieces)), dtype=torch.uint8)
        dist.broadcast(torch.tensor([len(message)]), 0, self._channel)
        dist.broadcast(message, 0, self._channel)

    def stop(self) -> None:
        """Leader: let the others go."""
        dist.broadcast(torch.tensor([_STOP]), 0, self._channel)

    def receive(self) -> list[Piece] | None:
        """Follower: what to compute next; None when the leader has ended."""
        length = torch.zeros(1, dtype=torch.int64)
        dist.broadcast(length, 0, self._channel)
        if int(length) == _STOP:
            return None
        message = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(message, 0, self._channel)
        return decode(message.numpy().tobytes())

    def total(self, value: float | None) -> float | None:
        """The sum over all ranks, each of which must call it; None if one of them has none."""
        sums = torch.tensor([math.nan if value is None else value], dtype=torch.float64)
        dist.all_reduce(sums, group=self._channel)
        return None if math.isnan(total := float(sums)) else total

    def score_rows(
        self,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        *,
        temperature: float | Tensor,
        token_ids: Tensor | None,
        **ask: Any,
    ) -> HeadScores:
        """`grpo_numerics.score_rows` of all rows (R, D), each rank computing ceil(R / size) of them."""
        share = -(-len(hidden) // self.size)
        mine = slice(min(self.rank * share, len(hidden)), min((self.rank + 1) * share, len(hidden)))
        scores = score_rows(
            hidden[mine],
            weight,
            targets[mine],
            temperature=temperature[mine] if isinstance(temperature, Tensor) else temperature,
            token_ids=None if token_ids is None else token_ids[mine],
            **ask,
        )
        whole: dict[str, Any] = {
            f.name: self._gather(getattr(scores, f.name), share, len(hidden)) for f in fields(scores)
        }
        return HeadScores(**whole)

    def _gather(self, part: Tensor | None, share: int, rows: int) -> Tensor | None:
        if part is None:
            return None
        padded = part.new_zeros(share, *part.shape[1:])
        padded[: len(part)] = part
        whole = part.new_empty(self.size * share, *part.shape[1:])
        dist.all_gather_single(whole, padded)
        return whole[:rows]


class LeadingEngine:
    """Rank 0's engine: as `TorchEngine`, with the other ranks behind it."""

    def __init__(self, engine: Any, ranks: Ranks, peak_flops: float | None) -> None:
        """peak_flops: of all ranks together."""
        self._engine, self._ranks, self._peak_flops = engine, ranks, peak_flops

    @property
    def info(self) -> ReferenceInfo:
        return self._engine.info

    @property
    def hosted(self) -> Hosted:
        return self._engine.hosted

    @property
    def limits(self) -> BatchLimits:
        return self._engine.limits

    @property
    def peak_flops(self) -> float | None:
        return self._peak_flops

    def bytes_of(self, piece: Piece) -> int:
        return self._engine.bytes_of(piece)

    def tally(self) -> Tally:
        return self._engine.tally()

    def prepare(self, pieces: Sequence[Piece], engines: Sequence[HostedEngine] | None = None) -> Prepared:
        return self._engine.prepare(pieces)

    def compute(self, batch: Prepared) -> BatchScores:
        """Score a prepared batch together. A rank that fails ends its process: see above."""
        self._ranks.send(batch.pieces)
        return together(self._engine, batch)

    @property
    def reads_files(self) -> bool:
        """Not while it runs."""
        return False

    def no_room_beside(self, source: str) -> str | None:
        """Nothing is ever loaded beside it."""
        return None

    def beside(self, change: Change, on_stage: OnStage) -> HostedEngine:
        """Refused: a load that fails on one rank alone would leave the others waiting."""
        raise _not_while_it_runs()

    def adapt(self, addition: Addition, on_stage: OnStage) -> HostedEngine:
        """Refused, for the same reason."""
        raise ValueError("a reference over several processes takes no adapters; serve it merged: --model name=path")

    def shares_batches_with(self, other: HostedEngine) -> bool:
        """With itself."""
        return other is self

    def add(self, addition: Addition, on_stage: OnStage) -> HostedEngine:
        """Refused as well."""
        raise _not_while_it_runs()

    def save(self, directory: Path) -> None:
        """Refused: this rank has a slice."""
        raise _not_while_it_runs()

    def close(self) -> None:
        self._ranks.stop()
        self._engine.close()


def _not_while_it_runs() -> ValueError:
    return ValueError("a reference over several processes is not replaced while it runs; restart the server")


def together(engine: Any, batch: Prepared) -> BatchScores:
    """One batch on this rank. Ends the process when memory runs out: the ranks cannot agree on a retry any more."""
    try:
        return engine.compute_whole(batch)
    except (RuntimeError, MemoryError):
        log.critical("a batch of %d tokens failed on one rank; lower --max-batch-tokens", batch.tokens, exc_info=True)
        logging.shutdown()
        os._exit(1)


def encode(pieces: Sequence[Piece]) -> bytes:
    """Pieces as one safetensors message: all numbers in two flat arrays, the rest in its header."""
    asked = [ids for p in pieces for ids in p.token_ids or ()]
    arrays = {
        "tokens": _flat([array for p in pieces for array in (p.prompt, *p.completions)]),
        "asked": _flat([ids.reshape(-1) for ids in asked]),
        "masks": _flat([mask for p in pieces for mask in p.completion_mask or ()]),
        "temperatures": np.array([p.temperature for p in pieces], dtype=np.float64),
    }
    header = [
        {
            "lengths": [len(p.prompt), *map(len, p.completions)],
            "normalizer": p.normalizer,
            "extras": sorted(p.extras),
            "top_k": p.top_k,
            "asked": None if p.token_ids is None else [list(ids.shape) for ids in p.token_ids],
            "masked": p.completion_mask is not None,
        }
        for p in pieces
    ]
    return safetensors.numpy.save(arrays, {"pieces": json.dumps(header)})


def decode(message: bytes) -> list[Piece]:
    """What `encode` wrote."""
    arrays = safetensors.numpy.load(message)
    tokens, asked, masks = (_Reader(arrays[name]) for name in ("tokens", "asked", "masks"))
    length = int.from_bytes(message[:8], "little")
    header = json.loads(json.loads(message[8 : 8 + length])["__metadata__"]["pieces"])
    pieces = []
    for piece, temperature in zip(header, arrays["temperatures"], strict=True):
        prompt, *completions = (tokens.take(n) for n in piece["lengths"])
        ids = None if piece["asked"] is None else tuple(asked.take(r * c).reshape(r, c) for r, c in piece["asked"])
        pieces.append(
            Piece(
                prompt,
                tuple(completions),
                float(temperature),
                piece["normalizer"],
                frozenset(piece["extras"]),
                piece["top_k"],
                ids,
                tuple(masks.take(len(c)).astype(np.bool_) for c in completions) if piece["masked"] else None,
            )
        )
    return pieces


def _flat(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays).astype(np.int32, copy=False) if arrays else np.zeros(0, np.int32)


class _Reader:
    """Takes arrays off a flat one, in order."""

    def __init__(self, flat: np.ndarray) -> None:
        self._flat, self._at = flat, 0

    def take(self, count: int) -> np.ndarray:
        start, self._at = self._at, self._at + count
        return self._flat[start : self._at]
