"""Spans as OpenTelemetry makes and exports them; see `minmo.rpc.tracing`.

The one module that imports OpenTelemetry, and only where traces are made.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Sequence

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import (
    Link,
    SpanKind,
    Status,
    StatusCode,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace import Tracer as OtelTracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from typing_extensions import override

from minmo.rpc import metrics, tracing
from minmo.rpc.tracing import TRACEPARENT_KEY

_QUEUE_SPANS = 4096
_BATCH_SPANS = 256
_DELAY_MS = 500
_EXPORT_SECONDS = 2.0
_CLOSE_SECONDS = 2.0
_KINDS: dict[tracing.Kind, SpanKind] = {
    "internal": SpanKind.INTERNAL,
    "client": SpanKind.CLIENT,
    "server": SpanKind.SERVER,
}
_propagator = TraceContextTextMapPropagator()


class Tracer:
    """Makes spans and has them sent, without anybody waiting for it.

    Args:
        service: which runs here.
        sample_rate: share of the traces that are made.
        exporter: sends spans.
    """

    def __init__(self, service: str, sample_rate: float, exporter: SpanExporter) -> None:
        resource = Resource.create(
            {
                "service.name": service,
                "service.namespace": "minmo",
                "service.version": metrics.minmo_version(),
                "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
            }
        )
        self._provider = TracerProvider(
            sampler=ParentBasedTraceIdRatio(sample_rate),
            resource=resource,
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(_Queue(exporter))
        self._tracer = self._provider.get_tracer("minmo", metrics.minmo_version())

    def root(self, name: str, began: float | None, link: str) -> tracing.Span:
        """A span that begins a trace; `tracing.NONE` if it is not sampled."""
        linked = get_current_span(_context_of(link)).get_span_context()
        links = [Link(linked)] if linked.is_valid else []
        return _made(self._tracer, name, Context(), began, _offset(), "internal", links)

    def continued(
        self, name: str, traceparent: str, began: float | None, kind: tracing.Kind
    ) -> tracing.Span:
        """A span of a trace that another process has begun."""
        context = _context_of(traceparent)
        if not get_current_span(context).get_span_context().is_valid:
            return tracing.NONE
        return _made(self._tracer, name, context, began, _offset(), kind)

    def close(self) -> None:
        """Sends what waits, as long as that does not take long."""
        # On a thread that keeps nobody: a collector that is away must not keep the process.
        thread = threading.Thread(target=self._provider.shutdown, daemon=True)
        thread.start()
        thread.join(_CLOSE_SECONDS)


def exporter(endpoint: str) -> SpanExporter:
    """Sends spans to a collector: ``host:port`` or a URL, where ``https`` turns TLS on."""
    url = endpoint if "://" in endpoint else f"http://{endpoint}"
    return OTLPSpanExporter(
        endpoint=url,
        insecure=not url.startswith("https://"),
        timeout=_EXPORT_SECONDS,
        # As of the services: a proxy from the environment is for the world outside.
        channel_options=(("grpc.enable_http_proxy", 0),),  # type: ignore[arg-type]
    )


class _Span(tracing.Span):
    """A span that is recorded.

    Args:
        tracer: makes its children.
        span: OpenTelemetry's.
        offset: what has to be added to monotonic time, in nanoseconds; a trace has one in each
            process, so that a clock that is set does not tear it apart.
    """

    def __init__(self, tracer: OtelTracer, span: OtelSpan, offset: int) -> None:
        self._tracer, self._span, self._offset = tracer, span, offset
        self._context = set_span_in_context(span, Context())
        carrier: dict[str, str] = {}
        _propagator.inject(carrier, self._context)
        self.traceparent = carrier[TRACEPARENT_KEY]

    @override
    def child(self, name: str, began: float | None, kind: tracing.Kind) -> tracing.Span:
        return _made(self._tracer, name, self._context, began, self._offset, kind)

    @override
    def set(self, **attributes: tracing.Attribute) -> None:
        for name, value in attributes.items():
            self._span.set_attribute(f"minmo.{name}", value)

    @override
    def event(self, name: str, at: float | None = None) -> None:
        self._span.add_event(name, timestamp=_wall(at, self._offset))

    @override
    def end(self, at: float | None = None, *, failure: str = "") -> None:
        if not self._span.is_recording():
            return
        if failure:
            self._span.set_status(Status(StatusCode.ERROR, failure))
        self._span.end(_wall(at, self._offset))


class _Queue(BatchSpanProcessor):
    """Holds ended spans until they are sent. What does not fit is dropped, and counted."""

    def __init__(self, exporter: SpanExporter) -> None:
        super().__init__(
            _Counted(exporter, self._sent),
            max_queue_size=_QUEUE_SPANS,
            max_export_batch_size=_BATCH_SPANS,
            schedule_delay_millis=_DELAY_MS,
        )
        self._waiting = 0
        self._lock = threading.Lock()

    @override
    def on_end(self, span: ReadableSpan) -> None:
        with self._lock:
            fits = self._waiting < _QUEUE_SPANS
            self._waiting += fits
        if fits:
            super().on_end(span)
        else:
            metrics.count_spans("dropped", 1)

    def _sent(self, count: int) -> None:
        with self._lock:
            self._waiting -= count


class _Counted(SpanExporter):
    """Counts what becomes of the spans that another exporter is given."""

    def __init__(self, exporter: SpanExporter, on_sent: Callable[[int], None]) -> None:
        self._exporter, self._on_sent = exporter, on_sent

    @override
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            done = result is SpanExportResult.SUCCESS
            metrics.count_spans("exported" if done else "failed", len(spans))
            self._on_sent(len(spans))
        return result

    @override
    def shutdown(self) -> None:
        self._exporter.shutdown()


def _made(
    tracer: OtelTracer,
    name: str,
    context: Context,
    began: float | None,
    offset: int,
    kind: tracing.Kind,
    links: Sequence[Link] = (),
) -> tracing.Span:
    span = tracer.start_span(
        name, context, _KINDS[kind], links=links, start_time=_wall(began, offset)
    )
    return _Span(tracer, span, offset) if span.is_recording() else tracing.NONE


def _context_of(traceparent: str) -> Context:
    return _propagator.extract({TRACEPARENT_KEY: traceparent}, Context())


def _offset() -> int:
    return time.time_ns() - time.monotonic_ns()


def _wall(at: float | None, offset: int) -> int:
    """Nanoseconds of Unix time at a moment, by default now."""
    return (time.monotonic_ns() if at is None else int(at * 1e9)) + offset
