"""Traces with OpenTelemetry: of the client as of the server. Nothing where the extra `otel` is not installed.

What records and exports is the program's choice: its own tracer provider, or `configure`, which the commands call and which
does what the standard OTEL_* variables say, nothing when there are none. W3C's traceparent goes with each request, so that a
step of a trainer, its request, and what the server did for it are one trace.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Generator, Mapping, MutableMapping
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal
from urllib.parse import urlsplit

from grpo_client.version import package_version

logger = logging.getLogger(__name__)

Attributes = Mapping[str, str | int | float | bool]
Kind = Literal["CLIENT", "SERVER", "INTERNAL"]
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


@cache
def available() -> bool:
    """Whether opentelemetry-api is installed."""
    return importlib.util.find_spec("opentelemetry") is not None and bool(
        importlib.util.find_spec("opentelemetry.trace")
    )


class Span:
    """One span, or nothing."""

    def __init__(self, span: Any = None) -> None:
        self._span = span

    def set(self, attributes: Mapping[str, str | int | float | bool | None]) -> None:
        """Attributes of the span; those that are None are left out."""
        if self._span is not None:
            self._span.set_attributes({name: value for name, value in attributes.items() if value is not None})

    def rename(self, name: str) -> None:
        if self._span is not None:
            self._span.update_name(name)

    def answered(self, status: int, error_from: int) -> None:
        """The HTTP status; an error from this one on: 400 for who asked, 500 for who answered."""
        if self._span is None:
            return
        from opentelemetry.trace import StatusCode

        self._span.set_attribute("http.response.status_code", status)
        if status >= error_from:
            self._span.set_status(StatusCode.ERROR)
            self._span.set_attribute("error.type", str(status))


@contextmanager
def span(
    name: str,
    attributes: Attributes | None = None,
    *,
    kind: Kind = "INTERNAL",
    carrier: Mapping[str, str] | None = None,
) -> Generator[Span]:
    """What happens inside belongs to a span of this name. carrier: headers that may name the trace it belongs to."""
    if not available():
        yield Span()
        return
    from opentelemetry import propagate, trace

    context = None if carrier is None else propagate.extract(carrier)
    tracer = trace.get_tracer("grpo_client", package_version())
    with tracer.start_as_current_span(name, context, trace.SpanKind[kind], attributes) as current:
        yield Span(current if current.is_recording() else None)


@contextmanager
def asking(method: str, path: str, base_url: str, request_id: str) -> Generator[tuple[Span, dict[str, str]]]:
    """A span of the client's own for one HTTP request, and the headers that carry it to the server."""
    address = urlsplit(base_url)
    attributes: dict[str, str | int | float | bool] = {
        "http.request.method": method,
        "url.full": base_url + path,
        "server.address": address.hostname or "",
        "grpo.request_id": request_id,
    }
    if address.port is not None:
        attributes["server.port"] = address.port
    with span(f"{method} {path}", attributes, kind="CLIENT") as current:
        headers: dict[str, str] = {}
        inject(headers)
        yield current, headers


def inject(headers: MutableMapping[str, str]) -> None:
    """Put the trace that runs, if one does, where the server will find it."""
    if available():
        from opentelemetry import propagate

        propagate.inject(headers)


def recording() -> bool:
    """Whether what happens now is traced."""
    if not available():
        return False
    from opentelemetry import trace

    return trace.get_current_span().is_recording()


def past_span(name: str, start_ns: int, end_ns: int, attributes: Attributes) -> None:
    """A span that is over, below the one that runs. Times: of the wall clock, since 1970."""
    if not available():
        return
    from opentelemetry import trace

    tracer = trace.get_tracer("grpo_client", package_version())
    tracer.start_span(name, attributes=attributes, start_time=start_ns).end(end_ns)


def configure(service: str) -> bool:
    """Do what the OTEL_* variables ask for: where spans go, and as what. True when they go somewhere.

    service: the name unless OTEL_SERVICE_NAME gives one. A provider that the program has set stays.
    """
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    asked = exporter or any(os.environ.get(name) for name in _ENDPOINTS)
    if not asked or exporter == "none" or os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if not available() or importlib.util.find_spec("opentelemetry.sdk") is None:
        logger.warning("OTEL_* asks for traces, and there are none: pip install 'grpo-refserver[otel]'")
        return False
    if exporter not in ("", "otlp", "console"):
        logger.warning("OTEL_TRACES_EXPORTER=%.40s is not known here: use otlp, console or none", exporter)
        return False
    from opentelemetry import trace
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return True
    named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    provider = TracerProvider(resource=Resource.create({} if named else {"service.name": service}))
    if exporter == "console":
        provider.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter()))
    else:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return True


def flush() -> None:
    """Send what is not sent yet, before the process ends in a way that no exit handler sees."""
    if available():
        from opentelemetry import trace

        send = getattr(trace.get_tracer_provider(), "force_flush", None)
        if send is not None:
            send()
