"""What operators scrape of swaps."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from grpo_server.swapping.progress import Progress

SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600)


class SwapMetrics:
    """Counts swaps and mixes by how they ended."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._swaps = Counter(
            "grpo_server_swaps", "Swaps and mixes, by how they ended.", ("kind", "result"), registry=registry
        )
        self._seconds = Histogram(
            "grpo_server_swap_seconds",
            "From being asked for to its end.",
            ("kind",),
            buckets=SECONDS,
            registry=registry,
        )
        self._under_way = Gauge(
            "grpo_server_swap_in_progress", "1 while a swap or a mix is under way.", registry=registry
        )
        self._hosted = Gauge(
            "grpo_server_engines",
            "References in memory: 2 while one serves what it accepted before a swap.",
            registry=registry,
        )

    def watch(self, *, under_way: Callable[[], float], engines: Callable[[], float]) -> None:
        """Read these at every scrape."""
        self._under_way.set_function(under_way)
        self._hosted.set_function(engines)

    def ended(self, progress: Progress) -> None:
        self._swaps.labels(progress.kind, progress.state).inc()
        self._seconds.labels(progress.kind).observe(progress.seconds)
