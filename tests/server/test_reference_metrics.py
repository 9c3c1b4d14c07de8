"""What is counted of each reference: of a batch that several share, each bears its part."""

from __future__ import annotations

from grpo_server.reference_metrics import ReferenceMetrics
from grpo_server.scheduler.events import BatchDone, Share
from prometheus_client import CollectorRegistry
from server_fakes import FakeEngine


def test_a_batch_of_several_references_is_borne_by_each_as_its_tokens_were_priced() -> None:
    registry = CollectorRegistry()
    metrics = ReferenceMetrics(registry)
    base, adapter = FakeEngine("base").info, FakeEngine("adapter").info
    metrics.hosted("base", base)
    metrics.hosted("adapter", adapter)
    shares = (Share(base, tokens=30, scored_tokens=7), Share(adapter, tokens=10, scored_tokens=4))
    metrics.batch_done(
        BatchDone(shares, requests=2, tokens=40, computed_tokens=36, scored_tokens=11, seconds=2.0, splits=0, flops=8e9)
    )

    def told(name: str) -> list[float | None]:
        labels = ({"reference": "base"}, {"reference": "adapter"})
        return [registry.get_sample_value(f"grpo_server_hosted_{name}_total", one) for one in labels]

    assert told("scored_tokens") == [7, 4]
    assert told("computed_tokens") == [27, 9]
    assert told("compute_seconds") == [1.5, 0.5]
    assert told("model_flops") == [6e9, 2e9]
