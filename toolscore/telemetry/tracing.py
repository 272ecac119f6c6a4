"""OpenTelemetry spans: one for each call, one for each request to a server. Nothing of it is loaded unless wanted.

The caller's trace comes in `_meta.traceparent` (MCP) or the header `traceparent` (REST), and the server's request
carries ours on in its `_meta`, with `tracestate` and `baggage`. Without an exporter the caller's own goes through.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import msgspec

from toolscore.core.errors import InvalidRequest, ToolScoreError
from toolscore.core.jsonrpc import decode, meta_of
from toolscore.core.models import Principal, ToolResult

__all__ = ["CARRIED", "NO_TRACING", "Span", "Tracing", "open_tracing"]

CARRIED = ("traceparent", "tracestate", "baggage")
"""W3C Trace Context and Baggage, as members of `_meta` (MCP, OpenTelemetry trace context)."""
EXPORT_SECONDS = 5
CLOSE_SECONDS = 3.0


class Span:
    """One span under way. This base class is one that nobody looks at."""

    def ended(self, result: ToolResult) -> None:
        """Note how a call ended."""

    def carried(self) -> dict[str, str]:
        """What the other side needs to go on with this trace, as members of `_meta`."""
        return {}


class Tracing(Protocol):
    """Makes spans."""

    def call(
        self, tool_id: str, principal: Principal, request_id: str, extra: dict[str, Any] | None
    ) -> AbstractContextManager[Span]:
        """A span around one call, within the caller's trace.

        Args:
            extra: the members of the request's params beside its arguments; the caller's trace stands in its `_meta`.
        """
        ...

    def request(self, server_id: str, method: str, what: str) -> AbstractContextManager[Span]:
        """A span around one request to a server."""
        ...


class _NoTracing:
    """Makes spans that nobody looks at, at no cost."""

    _nothing = nullcontext(Span())

    def call(self, *_: Any) -> AbstractContextManager[Span]:
        return self._nothing

    def request(self, *_: Any) -> AbstractContextManager[Span]:
        return self._nothing


NO_TRACING: Tracing = _NoTracing()


class _OpenTelemetrySpan(Span):
    def __init__(self, span: Any, propagator: Any, context: Any) -> None:
        self._span = span
        self._propagator = propagator
        self._context = context

    def ended(self, result: ToolResult) -> None:
        self._span.set_attribute("gen_ai.tool.name", result.tool.tool_id)
        self._span.set_attribute("toolscore.server_id", result.tool.server_id)
        self._span.set_attribute("toolscore.is_error", result.is_error)
        if result.cache_level is not None:
            self._span.set_attribute("toolscore.cache_level", result.cache_level)

    def carried(self) -> dict[str, str]:
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, context=self._context)
        return carrier


class _OpenTelemetry:
    """Makes spans. `open_tracing` says where they go."""

    def __init__(self, provider: Any) -> None:
        from opentelemetry import trace
        from opentelemetry.baggage.propagation import W3CBaggagePropagator
        from opentelemetry.propagators.composite import CompositePropagator
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._trace = trace
        self._provider = provider
        self._tracer = provider.get_tracer("toolscore")
        self._propagator = CompositePropagator([TraceContextTextMapPropagator(), W3CBaggagePropagator()])

    @contextmanager
    def call(self, tool_id: str, principal: Principal, request_id: str, extra: dict[str, Any] | None) -> Iterator[Span]:
        try:
            meta = meta_of(extra)
            carrier = {key: _text(meta[key]) for key in CARRIED if key in meta}
        except InvalidRequest:
            carrier = {}
        context = self._propagator.extract(carrier)
        with self._tracer.start_as_current_span(
            f"tools/call {tool_id[:128]}",
            context=context,
            kind=self._trace.SpanKind.SERVER,
            attributes={
                "gen_ai.operation.name": "execute_tool",
                "gen_ai.tool.name": tool_id[:128],
                "enduser.id": principal.name,
                "toolscore.request_id": request_id,
            },
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            yield from self._watched(span)

    @contextmanager
    def request(self, server_id: str, method: str, what: str) -> Iterator[Span]:
        with self._tracer.start_as_current_span(
            f"{method} {what[:128]}",
            kind=self._trace.SpanKind.CLIENT,
            attributes={"rpc.system": "jsonrpc", "rpc.method": method, "toolscore.server_id": server_id},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            yield from self._watched(span)

    def _watched(self, span: Any) -> Iterator[Span]:
        try:
            yield _OpenTelemetrySpan(span, self._propagator, self._trace.set_span_in_context(span))
        except ToolScoreError as exc:
            span.set_attribute("error.type", exc.code)
            span.set_status(self._trace.StatusCode.ERROR, exc.message[:200])
            raise

    def close(self) -> None:
        """Send what is left, and end."""
        self._provider.shutdown()


def _text(value: Any) -> str:
    if isinstance(value, msgspec.Raw):
        value = decode(value)
    return value if isinstance(value, str) else ""


@contextmanager
def open_tracing(endpoint: str | None, headers: dict[str, str] | None = None) -> Iterator[Tracing]:
    """Send spans to a collector, if one is configured.

    Args:
        endpoint: of OTLP over HTTP, such as `http://127.0.0.1:4318/v1/traces`.
        headers: sent along, for a collector that asks for a key.
    """
    if endpoint is None:
        yield NO_TRACING
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as exc:
        raise RuntimeError(
            "tracing.endpoint is set, and OpenTelemetry is not installed: pip install toolscore[tracing]"
        ) from exc
    provider = TracerProvider(resource=Resource.create({"service.name": "toolscore"}))
    exporter = OTLPSpanExporter(endpoint=endpoint, headers=headers or {}, timeout=EXPORT_SECONDS)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracing = _OpenTelemetry(provider)
    try:
        yield tracing
    finally:
        # A collector that hangs must not hold up the end.
        closing = threading.Thread(target=tracing.close, daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)
