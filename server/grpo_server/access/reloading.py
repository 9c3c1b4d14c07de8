"""Files that are read again while the server runs: at each change, of which the kernel sends word, and at SIGHUP.

Nothing is asked for again and again. Network file systems tell nothing of what other machines write: send SIGHUP there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from watchfiles import awatch

logger = logging.getLogger(__name__)

# Of a file, to tell whether it is the same as before; None: it is not there.
Stamp = tuple[int, int, int] | None


class Reloadable(Protocol):
    @property
    def files(self) -> tuple[Path, ...]: ...

    def reload(self) -> None:
        """Read the files again. Does not raise: what is broken is logged, and what was read before stands."""
        ...


class Reloading:
    """`now` reads everything again; inside `watching`, whatever changes is."""

    def __init__(self, parts: Sequence[Reloadable]) -> None:
        self._parts = [(part, _stamps(part)) for part in parts]

    @property
    def files(self) -> list[Path]:
        return [file for part, _ in self._parts for file in part.files]

    def now(self) -> None:
        """A signal handler of the event loop."""
        self._parts = [(part, _stamps(part)) for part, _ in self._parts]
        for part, _ in self._parts:
            part.reload()

    def changed(self) -> None:
        """Read again what is not as it was."""
        for i, (part, before) in enumerate(self._parts):
            if (after := _stamps(part)) != before:
                self._parts[i] = part, after
                part.reload()

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        if not self._parts:
            yield
            return
        end = asyncio.Event()
        task = asyncio.create_task(self._watch(end), name="watch files")
        try:
            yield
        finally:
            end.set()
            await asyncio.wait([task])

    async def _watch(self, end: asyncio.Event) -> None:
        """Whole directories, because a file is seldom written in place: editors rename a new one over it, and Kubernetes swaps
        a link beside it."""
        directories = {file.parent for given in self.files for file in (given.absolute(), given.resolve())}
        # What changed before the kernel was asked to tell, which the next line does before it waits for anything.
        asyncio.get_running_loop().call_soon(self.changed)
        try:
            async for _ in awatch(*directories, stop_event=end, recursive=False, watch_filter=None):
                self.changed()
        except (OSError, RuntimeError) as error:  # no watches left, or a directory that cannot be watched
            logger.warning("changes of %s are not seen (%s); send SIGHUP after one", _shown(directories), error)


def _stamps(part: Reloadable) -> list[Stamp]:
    return [_stamp(file) for file in part.files]


def _stamp(file: Path) -> Stamp:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _shown(directories: set[Path]) -> str:
    return ", ".join(sorted(map(str, directories)))
