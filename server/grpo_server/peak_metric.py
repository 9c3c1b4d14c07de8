"""A gauge that has a sample only while its value is known: one of prometheus_client always has one, and 0 would be wrong."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector


class PeakFlops(Collector):
    """`value`: operations a second; None: not known."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.value: float | None = None
        registry.register(self)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """At every scrape."""
        if self.value is not None:
            text = "Operations a second that the devices do at most in the precision in which they compute."
            yield GaugeMetricFamily("grpo_server_peak_flops", text, value=self.value)
