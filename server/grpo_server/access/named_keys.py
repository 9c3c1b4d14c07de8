"""The named keys that open now: looked up in constant time, and replaced as a whole when their file changes."""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from grpo_server.access.caller import Caller
from grpo_server.access.key_file import digest_of, read_entries
from grpo_server.scheduler.accounts import Account

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KeyRing:
    """Digests with their holders. Never changed: a request is judged by one ring from its first line to its last."""

    digests: tuple[tuple[bytes, Caller], ...] = field(repr=False)

    def holder(self, key: bytes) -> Caller | None:
        """Whose key this is. Every digest is compared, so how long it takes tells nothing about how much was right."""
        given = digest_of(key)
        found = [caller for digest, caller in self.digests if hmac.compare_digest(digest, given)]
        return found[0] if found else None

    @property
    def callers(self) -> list[Caller]:
        return list({caller.name: caller for _, caller in self.digests}.values())


class NamedKeys:
    """A keys file and what it said when it was last whole.

    `trusted` is false while the file on disk is broken and what was read before stands. Raises ValueError when it is broken
    at the start.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._clock = clock
        self.reloads = self.failures = 0
        self.trusted = True
        self.ring = self._read({})

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def reload(self) -> None:
        """Read the file again. One that is broken changes nothing and is said loudly; balances stay with their names."""
        try:
            ring = self._read({caller.name: caller.account for caller in self.ring.callers})
        except ValueError as error:
            self.failures += 1
            self.trusted = False
            logger.error("%s; the %d keys read before stay in force until it is mended", error, len(self.ring.callers))
            return
        before, after = ({c.name: c for c in r.callers} for r in (self.ring, ring))
        if ring.digests == self.ring.digests and before == after and self.trusted:
            return
        self.ring = ring
        self.reloads += 1
        self.trusted = True
        added, gone = sorted(after.keys() - before.keys()), sorted(before.keys() - after.keys())
        logger.info("%s read again: %d keys; new: %s; gone: %s", self.path, len(after), _names(added), _names(gone))

    def _read(self, accounts: dict[str, Account]) -> KeyRing:
        digests: list[tuple[bytes, Caller]] = []
        for entry, own in read_entries(self.path):
            account = accounts.get(entry.name) or Account(entry.name, entry.limits, self._clock)
            account.limits = entry.limits
            caller = Caller(entry.name, entry.scopes, account)
            digests += [(digest, caller) for digest in own]
        return KeyRing(tuple(digests))


def _names(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
