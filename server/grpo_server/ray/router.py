"""Which replica gets a request: the one that its prompt belongs to, on the ring that the client's balancer has too."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from grpo_client.ring import PROMPT_KEY, Ring, read_key
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

_HEADER = PROMPT_KEY.lower().encode()


class PromptRouter(RequestRouter):
    """By the key in the header, with bounded loads; without one, the less busy of two that are drawn."""

    def initialize_state(self, **kwargs: Any) -> None:
        self._ring = Ring(())

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Ranks of replicas: Ray asks the next rank where the one before takes nothing more."""
        if not candidate_replicas:
            return []
        key = _key_of(pending_request)
        if key is None:
            return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))]
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        if set(self._ring.members) != by_name.keys():
            self._ring = Ring(by_name)
        loads = {name: self.replica_queue_len_cache.get(one.replica_id) or 0 for name, one in by_name.items()}
        first = self._ring.place(key, loads)
        others = (name for name in self._ring.clockwise(key) if name != first)
        return [[by_name[name]] for name in (first, *others)]


def _key_of(request: PendingRequest | None) -> int | None:
    """Of an HTTP request, whose only argument is what the proxy made of it."""
    scope = getattr(request.args[0], "_asgi_scope", None) if request is not None and request.args else None
    headers: Iterable[tuple[bytes, bytes]] = scope.get("headers", ()) if isinstance(scope, dict) else ()
    return next((read_key(value.decode("latin-1")) for name, value in headers if name.lower() == _HEADER), None)
