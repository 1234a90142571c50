"""One OpenTelemetry span per request: its time, status, model, account and numbers of tokens, and never any text.

Sent by OTLP over HTTP to the address given, or where OpenTelemetry's own environment variables say.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from deepwell import __version__
from deepwell.errors import ConfigError
from deepwell.server.request_log import Noted

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PATH = "/v1/traces"
_NS = 10**9


@contextmanager
def tracing(url: str, environ: Mapping[str, str] = os.environ) -> Iterator[Callable[[Noted], None] | None]:
    """What to tell of each request, in the `with` block; None if no address is given in either way.

    Raises ConfigError where the packages are missing.
    """
    if not url and not any(environ.get(name) for name in ENDPOINTS):
        yield None
        return
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    except ImportError:
        raise ConfigError("--otlp needs OpenTelemetry: pip install 'deepwell[tracing]'") from None
    endpoint = url if not url or url.endswith(_PATH) else url.rstrip("/") + _PATH
    service = environ.get("OTEL_SERVICE_NAME", "deepwell")
    provider = TracerProvider(resource=Resource.create({"service.name": service, "service.version": __version__}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint or None)))
    tracer, parents = provider.get_tracer("deepwell"), TraceContextTextMapPropagator()

    def tell(noted: Noted) -> None:
        ended = int(noted.time * _NS)
        parent = parents.extract({"traceparent": noted.traceparent}) if noted.traceparent else None
        span = tracer.start_span(
            f"{noted.method} {noted.endpoint}",
            context=parent,
            kind=trace.SpanKind.SERVER,
            attributes=attributes_of(noted),
            start_time=ended - int(noted.seconds * _NS),
        )
        if noted.status >= 500:
            span.set_status(trace.StatusCode.ERROR)
        span.end(ended)

    try:
        yield tell
    finally:
        provider.shutdown()


def attributes_of(noted: Noted) -> dict[str, str | int | float]:
    """By the conventions for HTTP and for generating models, and our own for what those do not know."""
    found: dict[str, str | int | float | None] = {
        "http.request.method": noted.method,
        "http.response.status_code": noted.status,
        "url.path": noted.path,
        "client.address": noted.client,
        "deepwell.request.id": noted.id,
        "enduser.id": noted.account,
        "gen_ai.request.model": noted.model,
        "gen_ai.usage.input_tokens": noted.prompt_tokens,
        "gen_ai.usage.output_tokens": noted.completion_tokens,
        "gen_ai.response.id": noted.answers[0] if noted.answers else None,
        "deepwell.usage.cached_tokens": noted.cached_tokens,
        "deepwell.first_token_seconds": noted.first,
    }
    return {name: value for name, value in found.items() if value is not None}
