"""A start: every reference that a server hosts from the beginning, one after the other, in the thread in which they compute."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import reduce

from grpo_server.config import ServerConfig
from grpo_server.engine.config import BatchLimits
from grpo_server.engine.contract import Addition, EngineLoader, HostedEngine
from grpo_server.naming import Named
from grpo_server.swapping.resume import addition, record_start
from grpo_server.swapping.state import StateDir

logger = logging.getLogger(__name__)

Opened = list[tuple[Named, HostedEngine]]


def open_all(
    config: ServerConfig, load: EngineLoader, state: StateDir | None, on_stage: Callable[[str], None]
) -> Opened:
    """The default reference first. load: gives that one; the others come up beside it.

    Raises OSError or ValueError, which names the reference that cannot be had, and whatever `load` raises.
    """
    first, *others = config.references
    others += [] if state is None else _added(state, {one.label for one in config.references})
    engine = load()
    if state is not None:
        record_start(first.source, config.revision, state, engine.info)
    opened: Opened = [(first, engine)]
    for named in others:
        logger.info("%s: %s comes up beside %d", named.label, named.source, len(opened))
        try:
            if named.base is None:
                opened.append((named, _further(named, engine, state, on_stage)))
            else:
                opened.append((named, _laid(named, _base_of(named, opened), state, on_stage)))
        except (OSError, ValueError) as error:
            kind = OSError if isinstance(error, OSError) else ValueError
            raise kind(f"{named.label} ({named.source}): {error}") from error
    return opened


def _added(state: StateDir, told: set[str]) -> list[Named]:
    """Those that were loaded while a server served; what settings speak of goes by them."""
    added: list[Named] = []
    for name, last in state.added.items():
        if name not in told:
            logger.info("%s was loaded while the server served, and comes up again", name)
            added.append(Named(last.started_model, name, last.base))
    return sorted(added, key=lambda one: one.base is not None)


def _further(
    named: Named, first: HostedEngine, state: StateDir | None, on_stage: Callable[[str], None]
) -> HostedEngine:
    own = None if state is None else state.of(named.label)
    wanted = addition(named, own)
    if (why := first.no_room_beside(wanted.source)) is not None:
        raise ValueError(
            f"it does not fit into memory beside the others: {why}; leave it out, set a smaller --max-batch-tokens, or start a "
            "server of its own for it"
        )
    engine = first.add(wanted, on_stage)
    if own is not None:
        record_start(named.source, None, own, engine.info)
    return engine


def _laid(named: Named, base: HostedEngine, state: StateDir | None, on_stage: Callable[[str], None]) -> HostedEngine:
    """An adapter. On a base that has changed since, it is the next version."""
    own = None if state is None else state.of(named.label)
    engine = adapted(addition(named, own), base, on_stage)
    if own is not None:
        record_start(named.source, None, own, engine.info)
    return engine


def _base_of(named: Named, opened: Opened) -> HostedEngine:
    """Raises ValueError where it is not there."""
    for other, engine in opened:
        if named.base in ("", other.label):
            return engine
    raise ValueError(f"its base {named.base} is not hosted")


def adapted(wanted: Addition, base: HostedEngine, on_stage: Callable[[str], None]) -> HostedEngine:
    """The engine of an adapter on one that is hosted. Raises OSError or ValueError."""
    engine = base.adapt(wanted, on_stage)
    if engine.info.model != wanted.name:
        engine.close()
        raise ValueError(
            "this engine lays no adapters on a hosted model; give the adapter's directory to --model NAME=DIR"
        )
    return engine


def common_limits(engines: list[HostedEngine]) -> BatchLimits:
    """What every one of them takes at a time. The last that came up saw what the others left free."""
    return reduce(
        lambda all_, one: replace(all_, tokens=min(all_.tokens, one.tokens), nbytes=min(all_.nbytes, one.nbytes)),
        [engine.limits for engine in engines],
    )
