"""How many replicas there should be: as many as it takes to have so many queued tokens each, at most.

A device is busy whenever there is any work, so that its use says nothing of what waits.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import math
from typing import Any

from ray.serve.config import AutoscalingContext

METRIC = "queue_tokens"


class QueuedTokens:
    """tokens_per_replica: queued, of all replicas together over their number."""

    def __init__(self, tokens_per_replica: int) -> None:
        self._tokens_per_replica = tokens_per_replica

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """Ray's own delays and bounds are applied to the answer."""
        queued = sum((context.aggregated_metrics or {}).get(METRIC, {}).values())
        wanted = math.ceil(queued / self._tokens_per_replica)
        low, high = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
        return max(low, min(high, wanted)), {}
