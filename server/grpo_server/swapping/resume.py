"""What to load at a start: what was hosted last, where a state directory tells."""

from __future__ import annotations

import logging
from dataclasses import replace

from grpo_client.protocol import ReferenceInfo

from grpo_server.config import ServerConfig
from grpo_server.engine.config import EngineConfig
from grpo_server.engine.contract import Addition
from grpo_server.naming import Named
from grpo_server.swapping.state import Recorded, StateDir

logger = logging.getLogger(__name__)


def resumed(config: ServerConfig, state: StateDir | None) -> EngineConfig:
    """What the engine of the first reference is told. Who starts the server with another --model than before wants that one,
    as the next version."""
    told = config.engine()
    last = None if state is None else state.recorded
    if state is None or last is None:
        return told
    if not _is_same(last, told.model, config.revision):
        logger.info("%s is not what was served before: it is version %d", told.model, last.version + 1)
        return replace(told, version=last.version + 1)
    kept = state.directory_of(last)
    return replace(
        told,
        model=last.model if kept is None else str(kept),
        revision=last.revision,
        name=last.model,
        version=last.version,
        fingerprint=last.fingerprint,
    )


def addition(named: Named, state: StateDir | None) -> Addition:
    """The same of a further reference. Its name stays, whatever is hosted under it."""
    assert named.name is not None
    last = None if state is None else state.recorded
    if state is None or last is None:
        return Addition(named.source, named.name)
    if not _is_same(last, named.source, None):
        logger.info("%s is not what was served as %s: it is version %d", named.source, named.name, last.version + 1)
        return Addition(named.source, named.name, version=last.version + 1)
    kept = state.directory_of(last)
    source = last.model if kept is None else str(kept)
    return Addition(source, named.name, last.revision, last.version, last.fingerprint)


def record_start(source: str, revision: str | None, state: StateDir, info: ReferenceInfo) -> None:
    """Write down what came up. source, revision: what the server was told to host. Raises OSError."""
    last = state.recorded
    same = last is not None and _is_same(last, source, revision)
    recorded = Recorded(
        version=info.version,
        fingerprint=info.fingerprint,
        model=last.model if same and last else source,
        revision=last.revision if same and last else revision,
        kept=last.kept if same and last else None,
        started_model=source,
        started_revision=revision,
        added=last.added if same and last else False,
        base=last.base if same and last else None,
    )
    if last is not None and same and last.fingerprint != info.fingerprint:
        logger.warning(
            "%s has changed since it was served as version %d: it is version %d, fingerprint %s",
            last.model,
            last.version,
            info.version,
            info.fingerprint[:16],
        )
    if recorded != last:
        state.record(recorded)
    state.prune()


def _is_same(last: Recorded, source: str, revision: str | None) -> bool:
    return (last.started_model, last.started_revision) == (source, revision)
