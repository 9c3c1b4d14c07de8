"""Fingerprint pinning: that all the numbers a run uses come from one reference."""

from __future__ import annotations

import threading

from grpo_client.errors import FingerprintMismatch
from grpo_client.protocol import ReferenceInfo

FIRST = "first"


class FingerprintPin:
    """None: no pin. "first": whoever answers first is the one. Anything else: that fingerprint. Thread-safe."""

    def __init__(self, pin: str | None) -> None:
        self._take_first = pin == FIRST
        self._fingerprint = None if self._take_first else pin
        self._lock = threading.Lock()

    @property
    def fingerprint(self) -> str | None:
        """What a request must ask for, as far as it is known."""
        return self._fingerprint

    def check(self, reference: ReferenceInfo) -> None:
        """Raises FingerprintMismatch when another reference answered than the pinned one."""
        with self._lock:
            if self._take_first and self._fingerprint is None:
                self._fingerprint = reference.fingerprint
            pinned = self._fingerprint
        if pinned is not None and reference.fingerprint != pinned:
            raise FingerprintMismatch(
                f"reference {reference.fingerprint} ({reference.model}) answered, but {pinned} is pinned; "
                "point the client at the right server, or build a new client if the change is meant"
            )
