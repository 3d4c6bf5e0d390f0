"""An OpenTelemetry collector, as far as services know one: takes spans over OTLP, keeps them.

``python -m tests.otlp_collector 4317`` prints the traces that it is sent.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2


@dataclass(frozen=True)
class Taken:
    """A span that was taken; times in seconds of Unix time, ids in hexadecimal digits."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    began: float
    ended: float
    attributes: dict[str, object]
    links: tuple[str, ...]
    failed: bool

    @property
    def seconds(self) -> float:
        return self.ended - self.began


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what it is sent.

    Attributes:
        address: where it takes spans.
        spans: all that it was sent.
    """

    def __init__(self) -> None:
        self.address = ""
        self.spans: list[Taken] = []

    def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            named = {item.key: item.value.string_value for item in resource.resource.attributes}
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans.append(_taken(named["service.name"], span))
        return trace_service_pb2.ExportTraceServiceResponse()

    def trace(self, trace_id: str) -> list[Taken]:
        """The spans of a trace, by their beginning."""
        found = [span for span in list(self.spans) if span.trace_id == trace_id]
        return sorted(found, key=lambda span: span.began)

    async def wait_for(
        self, found: Callable[[list[Taken]], bool], seconds: float = 20.0
    ) -> list[Taken]:
        """All spans, once what is looked for is among them."""
        deadline = time.monotonic() + seconds
        while not found(spans := list(self.spans)):
            names = [f"{span.service}: {span.name}" for span in spans]
            assert time.monotonic() < deadline, f"it did not come within {seconds:g} s: {names}"
            await asyncio.sleep(0.05)
        return spans


@contextmanager
def collecting(port: int = 0) -> Iterator[Collector]:
    """A collector that runs, by default on a free port."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.address = f"127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait()


def tree(spans: list[Taken]) -> str:
    """A trace as lines: when each span began, how long it took, and what it is in."""
    children: dict[str, list[Taken]] = defaultdict(list)
    for span in sorted(spans, key=lambda span: span.began):
        children[span.parent_id].append(span)
    first = min(span.began for span in spans)

    def lines(parent_id: str, depth: int) -> Iterator[str]:
        for span in children[parent_id]:
            began, took = 1000 * (span.began - first), 1000 * span.seconds
            yield f"{began:8.1f} {took:8.1f} ms  {'  ' * depth}{span.service}: {span.name}"
            yield from lines(span.span_id, depth + 1)

    return "\n".join(lines("", 0))


def _taken(service: str, span: trace_pb2.Span) -> Taken:
    return Taken(
        service,
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano / 1e9,
        span.end_time_unix_nano / 1e9,
        {item.key: _value(item.value) for item in span.attributes},
        tuple(link.trace_id.hex() for link in span.links),
        span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
    )


def _value(value: object) -> object:
    return getattr(value, str(value.WhichOneof("value")))  # type: ignore[attr-defined]


def _print_traces(port: int) -> None:
    shown: set[str] = set()
    with collecting(port) as collector:
        print(f"--tracing-endpoint {collector.address}")
        while True:
            time.sleep(2.0)  # all services have sent the spans of a turn that is over
            for root in [span for span in list(collector.spans) if not span.parent_id]:
                if root.trace_id not in shown and time.time() - root.ended > 2.0:
                    shown.add(root.trace_id)
                    print(f"\n{root.trace_id} {root.attributes}")
                    print(tree(collector.trace(root.trace_id)))


if __name__ == "__main__":
    _print_traces(int(sys.argv[1]))
