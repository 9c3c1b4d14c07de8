"""What operators scrape of each reference by itself. The label is the name under which it was started or loaded, so that there
are as many series as names."""

from __future__ import annotations

from grpo_client.protocol import ReferenceInfo
from prometheus_client import CollectorRegistry, Counter, Gauge

from grpo_server.scheduler.events import BatchDone


class ReferenceMetrics:
    """Counts for each name; what is answered by none of them is not counted here."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str) -> Counter:
            return Counter(f"grpo_server_hosted_{name}", text, ("reference",), registry=registry)

        self._requests = counter("requests", "Requests that this reference accepted.")
        self._scored = counter("scored_tokens", "Completion tokens whose log-probs it gave.")
        self._computed = counter("computed_tokens", "Tokens that went through it, shared prompts once.")
        self._seconds = counter("compute_seconds", "Seconds of its batches in the engine.")
        self._flops = counter("model_flops", "Arithmetic operations of it in all batches.")
        self._hits = counter("cache_hits", "Completions of it that the cache had.")
        self._misses = counter("cache_misses", "Completions of it that the cache did not have.")
        self._version = Gauge(
            "grpo_server_hosted_version", "Its version, +1 at each swap.", ("reference",), registry=registry
        )
        self._ready = Gauge(
            "grpo_server_hosted_ready", "1 while it can be asked for by name.", ("reference",), registry=registry
        )
        self._names: dict[str, str] = {}  # label by what answers are signed with

    def hosted(self, label: str, info: ReferenceInfo) -> None:
        """This answers under that label from now on."""
        self._names = {name: known for name, known in self._names.items() if known != label} | {info.model: label}
        for metric in self._counters:
            metric.labels(label)  # 0 from the start
        self._version.labels(label).set(info.version)
        self._ready.labels(label).set(1)

    def forget(self, label: str) -> None:
        """Nothing answers under it any more."""
        self._names = {name: known for name, known in self._names.items() if known != label}
        for metric in (*self._counters, self._version, self._ready):
            metric.remove(label)

    def accepted(self, reference: ReferenceInfo) -> None:
        if (label := self._names.get(reference.model)) is not None:
            self._requests.labels(label).inc()

    def looked_up(self, reference: ReferenceInfo, hits: int, misses: int) -> None:
        """Completions that were found in the cache and that were not."""
        if (label := self._names.get(reference.model)) is not None:
            self._hits.labels(label).inc(hits)
            self._misses.labels(label).inc(misses)

    def batch_done(self, batch: BatchDone) -> None:
        """A batch of several references is borne by each as its tokens were priced."""
        for own in batch.shares:
            if (label := self._names.get(own.reference.model)) is not None:
                share = own.tokens / batch.tokens if batch.tokens else 1 / len(batch.shares)
                self._scored.labels(label).inc(own.scored_tokens)
                self._computed.labels(label).inc(batch.computed_tokens * share)
                self._seconds.labels(label).inc(batch.seconds * share)
                self._flops.labels(label).inc(batch.flops * share)

    @property
    def _counters(self) -> tuple[Counter, ...]:
        return (self._requests, self._scored, self._computed, self._seconds, self._flops, self._hits, self._misses)
