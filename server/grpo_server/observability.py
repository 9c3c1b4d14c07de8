"""What operators scrape. One registry per server, so that two in one process (tests, Ray) do not mix.

Names follow Prometheus' rules: base units, `_total` for counters. Labels are bounded: routes by their template, statuses,
and the reasons of `errors.ErrorCode` and the protocol.
"""

from __future__ import annotations

from collections.abc import Callable

from grpo_client.protocol import ReferenceInfo
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from grpo_server.peak_metric import PeakFlops
from grpo_server.reference_metrics import ReferenceMetrics
from grpo_server.scheduler import SchedulerLimits
from grpo_server.scheduler.events import BatchDone

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TOKENS = tuple(2**n for n in range(4, 21))


class Metrics:
    """Counts everything; also the scheduler's `Listener`."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.by_reference = ReferenceMetrics(registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"grpo_server_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"grpo_server_{name}", text, labels, buckets=buckets, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"grpo_server_{name}", text, registry=registry)

        self._requests = counter("requests", "Requests answered.", "route", "status")
        self._request_seconds = histogram("request_seconds", "From first byte in to last byte out.", SECONDS, "route")
        self._refusals = counter("refusals", "Requests refused or failed, by the code of the error.", "reason")
        self._queue_seconds = histogram("queue_seconds", "From acceptance to the first batch.", SECONDS)
        self._compute_seconds = histogram("compute_seconds", "One batch in the engine.", SECONDS)
        self._batch_tokens = histogram("batch_tokens", "Tokens of a batch as priced.", TOKENS)
        self._scored = counter("scored_tokens", "Completion tokens whose log-probs came out of the engine.")
        self._computed = counter("computed_tokens", "Tokens that went through the model, shared prompts once.")
        self._flops = counter("model_flops", "Arithmetic operations of the model in all batches.")
        self._peak_flops = PeakFlops(registry)
        self._splits = counter("oom_splits", "Times a batch was halved because memory ran out.")
        self._cache_hits = counter("cache_hits", "Completions answered from the cache.")
        self._cache_misses = counter("cache_misses", "Completions looked for in the cache and not found.")
        self._queue_requests = gauge("queue_requests", "Requests accepted and not yet answered.")
        self._queue_tokens = gauge("queue_tokens", "Tokens accepted and not yet computed.")
        self._queue_bytes = gauge("queue_bytes", "Memory held by requests and answers under way.")
        self._body_bytes = gauge("body_bytes", "Memory held by bodies of requests and by answers that are not read.")
        self._cache_bytes = gauge("cache_bytes", "Memory held by the cache.")
        self._max_batch_tokens = gauge("max_batch_tokens", "Tokens that one batch holds at most.")
        self._max_queue_tokens = gauge("max_queue_tokens", "Tokens accepted and not yet computed, at most.")
        self._ready = gauge("ready", "1 when /readyz is true.")
        self._version = gauge("reference_version", "Version of the default reference, +1 at each swap.")
        self._reference = Info("grpo_server_reference", "The default reference.", registry=registry)

    def watch(
        self,
        *,
        queue_requests: Callable[[], float],
        queue_tokens: Callable[[], float],
        queue_bytes: Callable[[], float],
        cache_bytes: Callable[[], float],
    ) -> None:
        """Read these at every scrape."""
        self._queue_requests.set_function(queue_requests)
        self._queue_tokens.set_function(queue_tokens)
        self._queue_bytes.set_function(queue_bytes)
        self._cache_bytes.set_function(cache_bytes)

    def limits(self, limits: SchedulerLimits) -> None:
        """What the engine and the queue take, to read `batch_tokens` and `queue_tokens` against."""
        self._max_batch_tokens.set(limits.max_batch_tokens)
        self._max_queue_tokens.set(limits.max_queue_tokens)

    def peak_flops(self, peak: float | None) -> None:
        """What the devices do at most, to read `model_flops` against; None: no series."""
        self._peak_flops.value = peak

    def watch_bodies(self, held: Callable[[], float]) -> None:
        self._body_bytes.set_function(held)

    def watch_ready(self, ready: Callable[[], bool]) -> None:
        self._ready.set_function(ready)

    def reference(self, info: ReferenceInfo) -> None:
        """This reference answers who names none, from now on."""
        self._version.set(info.version)
        self._reference.info(
            {"model": info.model, "fingerprint": info.fingerprint, "dtype": info.dtype, "mode": info.mode}
            | ({"tier": info.tier} if info.tier else {})
            | ({} if info.bitwise is None else {"bitwise": str(info.bitwise).lower()})
        )

    def request_done(self, route: str, status: int, seconds: float, error_code: str | None) -> None:
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)
        if error_code is not None:
            self._refusals.labels(error_code).inc()

    # --- scheduler.events.Listener --------------------------------------------------------------------------------

    def request_accepted(self, reference: ReferenceInfo) -> None:
        self.by_reference.accepted(reference)

    def request_started(self, queue_seconds: float) -> None:
        self._queue_seconds.observe(queue_seconds)

    def batch_done(self, batch: BatchDone) -> None:
        self._batch_tokens.observe(batch.tokens)
        self._compute_seconds.observe(batch.seconds)
        self._scored.inc(batch.scored_tokens)
        self._computed.inc(batch.computed_tokens)
        self._flops.inc(batch.flops)
        self._splits.inc(batch.splits)
        self.by_reference.batch_done(batch)

    def cache_looked_up(self, reference: ReferenceInfo, hits: int, misses: int) -> None:
        self.by_reference.looked_up(reference, hits, misses)
        self._cache_hits.inc(hits)
        self._cache_misses.inc(misses)
