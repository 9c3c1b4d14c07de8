"""What of a swap is kept for a restart: its files, and the word on who is hosted."""

from __future__ import annotations

from pathlib import Path

from grpo_client.models.demo import DEMO, ModelSource
from grpo_client.protocol import ReferenceInfo

from grpo_server.durable import sync_below
from grpo_server.engine.contract import HostedEngine
from grpo_server.swapping.fetching import Fetched
from grpo_server.swapping.state import Recorded, StateDir
from grpo_server.swapping.wish import Wish


class Keeping:
    """Of one swap, in the state of its reference; None: nothing is kept. directory: where files arrive that are to be kept:
    what comes from the hub stays in its cache, and the demo model in its wheel."""

    def __init__(self, state: StateDir | None, wish: Wish, source: ModelSource | None, *, reads_files: bool) -> None:
        lasts = wish.decay is None and (source is None or wish.model == DEMO)
        self._state, self._wish = state, wish
        self.directory = None if state is None or lasts or not reads_files else state.new_directory()

    @property
    def for_files(self) -> Path | None:
        """Where fetched files go; a mix is saved instead."""
        return self.directory if self._wish.decay is None else None

    @property
    def saves(self) -> bool:
        """Whether the new reference is written from memory."""
        return self.directory is not None and self._wish.decay is not None

    def save(self, engine: HostedEngine) -> None:
        """Write it. Raises OSError."""
        assert self.directory is not None
        engine.save(self.directory)
        sync_below(self.directory)

    def record(self, fetched: Fetched, info: ReferenceInfo) -> None:
        """After this a restart serves the new reference. Raises OSError."""
        state, wish = self._state, self._wish
        if state is None:
            return
        mixed = wish.decay is not None
        changed = {
            "version": info.version,
            "fingerprint": info.fingerprint,
            "model": wish.model,
            "revision": None if mixed else fetched.revision,
            "kept": None
            if self.directory is None
            else state.keep(self.directory, info.version, _inside(fetched, self.directory)),
        }
        if (last := state.recorded) is not None:
            state.record(last.model_copy(update=changed | ({"model": last.model} if mixed else {})))
        elif wish.new:
            state.record(
                Recorded(**changed, started_model=wish.model, started_revision=None, added=True, base=wish.base)
            )
        state.prune()


def _inside(fetched: Fetched, staging: Path) -> str:
    """A lone .gguf file is loaded by its own name."""
    source = Path(fetched.source)
    return source.name if source.parent == staging else ""
