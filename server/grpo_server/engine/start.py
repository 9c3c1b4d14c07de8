"""How an engine comes up: in one process, or as one of several that share a model."""

from __future__ import annotations

import signal

import torch

from .config import EngineConfig
from .contract import OnStage
from .engine import TorchEngine
from .loading import load
from .tensor_parallel import LeadingEngine, Ranks, together


def load_engine(config: EngineConfig, on_stage: OnStage = lambda _: None) -> TorchEngine | LeadingEngine:
    """Load, probe and return an engine. Raises OSError or ValueError with what to change."""
    if config.tensor_parallel:
        ranks = Ranks()
        engine = load_shared(config, ranks, on_stage)
        return LeadingEngine(engine, ranks, ranks.total(engine.peak_flops))
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    on_stage("load")
    return TorchEngine(config, load(config), on_stage=on_stage)


def load_shared(config: EngineConfig, ranks: Ranks, on_stage: OnStage = lambda _: None) -> TorchEngine:
    """This rank's slice of the engine. All ranks must call it."""
    if config.device_map:
        raise ValueError("device_map: not together with tensor_parallel; leave one of them out")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    on_stage("load")
    return TorchEngine(config, load(config, ranks.size), ranks.score_rows, on_stage)


def follow(config: EngineConfig) -> None:
    """A rank other than 0: load, then compute what the leader sends until it ends.

    torchrun tells all ranks to end at once. The leader drains first and needs the others for that, so these wait for its
    word; a leader that is gone without one ends them by its closed connection.
    """
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, signal.SIG_IGN)
    ranks = Ranks()
    engine = load_shared(config, ranks)
    ranks.total(engine.peak_flops)
    while (pieces := ranks.receive()) is not None:
        together(engine, engine.prepare(pieces))
    engine.close()
