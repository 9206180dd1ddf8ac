"""Traces through OpenTelemetry: a span a request, which joins the client's trace and is joined by the engine's spans.

The engine's are vLLM's own, with `engine_kwargs.otlp_traces_endpoint`. No span holds what was asked or answered.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagate import extract, inject
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context


class Tracer:
    """Sends spans to the collector at `endpoint` (OTLP over HTTP), in a thread."""

    def __init__(self, endpoint: str) -> None:
        self._provider = TracerProvider(resource=Resource.create({"service.name": "tunery"}))
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("tunery.serving")

    def begin(self, route: str, headers: Mapping[str, str]) -> Span:
        """A span within the trace that W3C's `traceparent` names, or of a new one."""
        context = extract({k: headers[k] for k in ("traceparent", "tracestate") if k in headers})
        return Span(self._tracer.start_span(f"POST {route}", context, SpanKind.SERVER, {"http.route": route}))

    def close(self) -> None:
        self._provider.shutdown()


class Span:
    """One request's span."""

    def __init__(self, span: Any) -> None:
        self._span = span

    def headers(self) -> dict[str, str]:
        found: dict[str, str] = {}
        inject(found, set_span_in_context(self._span))
        return found

    def end(self, status: int, model: str, version: str, prompt: int, completion: int) -> None:
        """Its attributes have OpenTelemetry's names for generative models."""
        self._span.set_attributes({
            "http.response.status_code": status, "gen_ai.request.model": model, "gen_ai.response.model": version,
            "gen_ai.usage.input_tokens": prompt, "gen_ai.usage.output_tokens": completion,
        })  # fmt: skip
        if status >= 500:
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()
