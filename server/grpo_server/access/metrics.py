"""What each named key has asked, for Prometheus: read at the scrape, so that a key that is gone leaves no series behind."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from grpo_server.access.named_keys import NamedKeys


class KeyCollector(Collector):
    """Series are bounded by the keys of the file (`key_file.MOST_KEYS`). Labels are names, never keys."""

    def __init__(self, keys: NamedKeys) -> None:
        self._keys = keys

    def collect(self) -> Iterator[Metric]:
        def counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
            return CounterMetricFamily(f"grpo_server_{name}", text, labels=labels)

        requests = counter("key_requests", "Requests answered to a named key.", "key", "status")
        tokens = counter("key_tokens", "Tokens computed for a named key, as priced.", "key")
        queued = GaugeMetricFamily("grpo_server_key_queue_tokens", "Tokens accepted, not yet answered.", labels=["key"])
        for caller in self._keys.ring.callers:
            account = caller.account
            for status, n in sorted(account.answers.items()):
                requests.add_metric([caller.name, str(status)], n)
            tokens.add_metric([caller.name], account.computed_tokens)
            queued.add_metric([caller.name], account.queue_tokens)
        reloads = counter("keys_file_reads", "Times that the keys file was read again, by how it went.", "result")
        reloads.add_metric(["ok"], self._keys.reloads)
        reloads.add_metric(["broken"], self._keys.failures)
        broken = GaugeMetricFamily(
            "grpo_server_keys_file_broken",
            "1 while the keys file cannot be used and what was read before stands.",
            value=0 if self._keys.trusted else 1,
        )
        yield from (requests, tokens, queued, reloads, broken)
