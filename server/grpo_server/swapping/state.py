"""What a restart must know: who was hosted last, under which version, and where its files are.

    state.json               who is hosted; replaced as a whole (written aside, synced, renamed, the directory synced)
    references/00000007/     the files of what a swap or a mix brought; named in state.json, or left over and removed
    references/.new-...      files that arrive; removed at the next start
    named/NAME/              the same of each further reference

A process that is killed at any point leaves a state.json that names one whole reference: its files are complete and under their
last name before state.json speaks of them, and those of the reference before are removed only afterwards.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from grpo_server.durable import sync
from grpo_server.own_directory import lock_directory

logger = logging.getLogger(__name__)

_STATE, _KEPT, _NEW, _OTHERS = "state.json", "references", ".new-", "named"
# The hosted reference and the one before it, for whoever must go back by hand.
_RING = 2


class Recorded(BaseModel):
    """Who is hosted. model, revision: where it came from, and the name that clients see. kept: its directory below the
    state's, where its files are kept. started_model, started_revision: what the server was told to serve when it was started.
    added: it was told so while it served, and no setting speaks of it. base: of an adapter, the name of the reference that it
    is laid on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int
    fingerprint: str
    model: str
    revision: str | None = None
    kept: str | None = None
    started_model: str
    started_revision: str | None = None
    added: bool = False
    base: str | None = None


class StateDir:
    """A directory that belongs to one server at a time. Raises ValueError when it cannot be had or read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = lock_directory(path, "state_dir")
        try:
            (path / _KEPT).mkdir(exist_ok=True)
        except OSError as error:
            self._lock.close()
            raise ValueError(f"state_dir: {path / _KEPT} cannot be written: {error.strerror}") from error
        self.recorded = self._read()
        self._remove_left_over()
        self._others: dict[str, StateDir] = {}

    def close(self) -> None:
        """Let another server have it."""
        for other in self._others.values():
            other.close()
        self._lock.close()

    def of(self, name: str) -> StateDir:
        """The state of a further reference. Raises ValueError as this one does."""
        if name not in self._others:
            self._others[name] = StateDir(self.path / _OTHERS / name)
        return self._others[name]

    @property
    def added(self) -> dict[str, Recorded]:
        """The further references that were loaded while a server served, and that a restart must load."""
        named = self.path / _OTHERS
        names = sorted(path.name for path in named.iterdir()) if named.is_dir() else []
        recorded = {name: self.of(name).recorded for name in names}
        return {name: last for name, last in recorded.items() if last is not None and last.added}

    def forget(self, name: str) -> None:
        """A further reference is hosted no more, now and after a restart. Raises OSError."""
        directory = self.path / _OTHERS / name
        (directory / _STATE).unlink(missing_ok=True)  # the word on it first, then its files
        if directory.is_dir():
            sync(directory)
        if (state := self._others.pop(name, None)) is not None:
            state.close()
        shutil.rmtree(directory, ignore_errors=True)

    def directory_of(self, recorded: Recorded) -> Path | None:
        """Where its files are kept."""
        return None if recorded.kept is None else self.path / recorded.kept

    def new_directory(self) -> Path:
        """An empty one, for files that arrive."""
        return Path(tempfile.mkdtemp(prefix=_NEW, dir=self.path / _KEPT))

    def keep(self, arrived: Path, version: int, inside: str = "") -> str:
        """Give arrived files their last name, which `Recorded.kept` takes. They must be on disk by now. inside: the file
        that is to be loaded, where that is not the directory."""
        final = self.path / _KEPT / f"{version:08d}"
        shutil.rmtree(final, ignore_errors=True)  # of a version that nobody was ever told of
        arrived.chmod(0o755)
        arrived.rename(final)
        sync(final.parent)
        return str(Path(_KEPT, final.name, inside))

    def record(self, recorded: Recorded) -> None:
        """From now on a restart serves this. Raises OSError; then it serves what was recorded before."""
        with tempfile.NamedTemporaryFile("w", dir=self.path, prefix=_NEW, delete=False) as file:
            try:
                file.write(recorded.model_dump_json(indent=1))
                file.flush()
                os.fsync(file.fileno())
                os.replace(file.name, self.path / _STATE)
            except OSError:
                os.unlink(file.name)
                raise
        sync(self.path)
        self.recorded = recorded

    def prune(self) -> None:
        """Remove the files of references that are two swaps old and more."""
        kept = sorted(p.name for p in (self.path / _KEPT).iterdir() if not p.name.startswith(_NEW))
        for name in kept[:-_RING]:
            if self.recorded is None or not (self.recorded.kept or "").startswith(f"{_KEPT}/{name}"):
                shutil.rmtree(self.path / _KEPT / name, ignore_errors=True)

    def _read(self) -> Recorded | None:
        file = self.path / _STATE
        if not file.exists():
            return None
        try:
            return Recorded.model_validate(json.loads(file.read_bytes()))
        except (OSError, ValueError, ValidationError) as error:
            raise ValueError(
                f"state_dir: {file} cannot be read, so nobody knows what was served last; mend it, or remove it to serve "
                f"--model "
                "as version 1"
            ) from error

    def _remove_left_over(self) -> None:
        """What a process that was killed had begun: files that had not arrived, and those of a version that never served."""
        for path in [*self.path.glob(f"{_NEW}*"), *(self.path / _KEPT).glob(f"{_NEW}*")]:
            logger.info("removing %s, which a swap left that did not end", path)
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
        newest = 0 if self.recorded is None else self.recorded.version
        for path in (self.path / _KEPT).iterdir():
            if path.name.isdecimal() and int(path.name) > newest:
                logger.info("removing %s, which never served", path)
                shutil.rmtree(path)
