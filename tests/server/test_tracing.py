"""One trace from a trainer's step to what the server did for it, and none of it unless somebody asked."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest
from grpo_client import AsyncReferenceClient, ReferenceClient, tracing
from grpo_client.errors import RequestRefused
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from server_fakes import PATIENCE, FakeEngine, real_server

EXPORTER = InMemorySpanExporter()


@pytest.fixture(scope="module", autouse=True)
def provider() -> Iterator[None]:
    """The process has one provider, and keeps the first that is set: it stays open, for one that is shut down would write into
    the logs of later tests. Its exporter takes no more spans."""
    made = TracerProvider()
    made.add_span_processor(SimpleSpanProcessor(EXPORTER))
    trace.set_tracer_provider(made)
    yield
    EXPORTER.shutdown()


@pytest.fixture(autouse=True)
def _nothing_yet() -> None:
    EXPORTER.clear()


def finished() -> dict[str, list[ReadableSpan]]:
    spans: dict[str, list[ReadableSpan]] = {}
    for span in EXPORTER.get_finished_spans():
        spans.setdefault(span.name, []).append(span)
    return spans


def parent_of(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent else None


def test_a_step_its_request_and_the_servers_work_are_one_trace() -> None:
    tracer = trace.get_tracer("trainer")
    with (
        real_server(FakeEngine()) as url,
        ReferenceClient(url, max_wait=0) as client,
        tracer.start_as_current_span("step"),
    ):
        client.score([[1, 2]], [[[3, 4], [5]]])
    spans = finished()
    [step], [score] = spans["step"], spans["grpo_client.score"]
    asked = {s.kind: s for s in spans["POST /v1/logprobs"]}
    sent, served = asked[SpanKind.CLIENT], asked[SpanKind.SERVER]
    assert {s.context.trace_id for group in spans.values() for s in group} == {step.context.trace_id}
    assert parent_of(score) == step.context.span_id
    assert parent_of(sent) == score.context.span_id
    assert parent_of(served) == sent.context.span_id
    steps = [spans[name][0] for name in ("decode", "queue", "prepare", "compute", "encode")]
    assert {parent_of(s) for s in steps} == {served.context.span_id}
    times = [t for s in steps for t in (s.start_time, s.end_time)]
    assert times == sorted(times), "one step after the other"
    assert served.start_time <= times[0]
    assert times[-1] <= served.end_time
    compute = dict(spans["compute"][0].attributes or {})
    assert compute == {"grpo.tokens": 5, "grpo.requests": 1}
    assert dict(served.attributes or {})["http.response.status_code"] == 200
    assert dict(served.attributes or {})["grpo.request_id"] == dict(sent.attributes or {})["grpo.request_id"]


def test_work_in_the_background_belongs_to_who_submitted_it() -> None:
    with real_server(FakeEngine()) as url, ReferenceClient(url, max_wait=0, max_request_tokens=4) as client:
        with trace.get_tracer("trainer").start_as_current_span("step"):
            future = client.submit([[1, 2], [1, 3]], [[[3, 4]], [[5, 6]]])
        future.result()
    spans = finished()
    [step] = spans["step"]
    assert len(spans["POST /v1/logprobs"]) == 4
    assert len(spans["compute"]) == 2
    assert {s.context.trace_id for group in spans.values() for s in group} == {step.context.trace_id}


def test_the_async_client_too() -> None:
    async def ask(url: str) -> None:
        async with AsyncReferenceClient(url, max_wait=0) as client:
            with trace.get_tracer("trainer").start_as_current_span("step"):
                await client.score([[1, 2]], [[[3]]])

    with real_server(FakeEngine()) as url:
        asyncio.run(ask(url))
    spans = finished()
    assert parent_of(spans["grpo_client.score"][0]) == spans["step"][0].context.span_id
    assert len({s.context.trace_id for group in spans.values() for s in group}) == 1


def test_another_clients_traceparent_is_taken_up_and_a_broken_one_is_not() -> None:
    body = {"groups": [{"prompt": [1], "completions": [[2]]}]}
    with real_server(FakeEngine()) as url, httpx.Client(base_url=url, timeout=PATIENCE) as http:
        for parent in (f"00-{'ab' * 16}-{'cd' * 8}-01", "00-nonsense"):
            assert http.post("/v1/logprobs", json=body, headers={"traceparent": parent}).status_code == 200
    first, second = finished()["POST /v1/logprobs"]
    assert (first.context.trace_id, parent_of(first)) == (int("ab" * 16, 16), int("cd" * 8, 16))
    assert (second.context.trace_id != first.context.trace_id, second.parent) == (True, None)


def test_refusals_are_errors_of_the_client_and_names_are_bounded() -> None:
    with real_server(FakeEngine()) as url, httpx.Client(base_url=url, timeout=PATIENCE) as http:
        with ReferenceClient(url, max_wait=0) as client, pytest.raises(RequestRefused):
            client.score([[1000]], [[[2]]])
        http.get("/no/such/path/1")
        http.delete("/v1/logprobs")
        for probe in ("/livez", "/readyz", "/metrics"):
            http.get(probe)
    spans = finished()
    asked = {s.kind: s for s in spans["POST /v1/logprobs"]}
    assert asked[SpanKind.CLIENT].status.status_code is StatusCode.ERROR
    assert asked[SpanKind.SERVER].status.status_code is StatusCode.UNSET
    assert set(spans) - {"grpo_client.score", "decode"} == {"POST /v1/logprobs", "GET", "HTTP /v1/logprobs"}


def test_prompts_and_keys_are_in_no_span(tmp_path) -> None:  # type: ignore[no-untyped-def]
    keys = tmp_path / "keys.yaml"
    keys.write_text("keys:\n  - {name: trainer, key: secret-key}\n")
    with (
        real_server(FakeEngine(), keys_file=keys) as url,
        ReferenceClient(url, api_key="secret-key", max_wait=0) as client,
    ):
        client.score_text(["a private prompt"], [[" and more"]])
    said = " ".join(span.to_json() for span in EXPORTER.get_finished_spans())
    assert '"grpo.key": "trainer"' in said
    assert "secret" not in said
    assert "private" not in said


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=PATIENCE * 2,
        env={"PATH": "", **environment},
    )


def test_without_the_extra_everything_works_and_nothing_is_imported() -> None:
    hidden = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] == 'opentelemetry':
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hide())
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name.startswith('opentelemetry') else real(name, *a)
from grpo_client import tracing
with tracing.span('x', {'a': 1}) as span, tracing.asking('GET', '/', 'http://localhost', 'id') as (sent, headers):
    span.set({'b': 2}); span.rename('y'); sent.answered(500, 400)
assert not tracing.recording() and headers == {} and not tracing.configure('x')
tracing.past_span('x', 0, 1, {}); tracing.flush()
print('done', any(m.startswith('opentelemetry') for m in sys.modules))
"""
    assert run(hidden).stdout == "done False\n"
    told = run(
        hidden.replace("not tracing.configure('x')", "True\ntracing.configure('x')"), OTEL_TRACES_EXPORTER="otlp"
    )
    assert "pip install 'grpo-refserver[otel]'" in told.stderr


@pytest.mark.parametrize(
    ("environment", "configured"),
    [
        ({}, False),
        ({"OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({"OTEL_TRACES_EXPORTER": "jaeger"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_the_standard_variables_decide(environment: dict[str, str], configured: bool) -> None:
    code = """
from grpo_client import tracing
print(tracing.configure('grpo-server'))
from opentelemetry import trace
with tracing.span('x'):
    print(trace.get_current_span().is_recording())
resource = getattr(trace.get_tracer_provider(), 'resource', None)
print(resource.attributes['service.name'] if resource else None)
import os, sys; sys.stdout.flush(); os._exit(0)
"""
    said = run(code, **environment).stdout.split()
    assert said == [str(configured)] * 2 + ["grpo-server" if configured else "None"]
    named = run(code, OTEL_SERVICE_NAME="mine", **environment).stdout.split()
    assert named[-1] == ("mine" if configured else "None")


def test_tracing_is_here() -> None:
    assert tracing.available()
