"""Spans, as whoever makes them sees them; what a collector gets is in the service tests."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from minmo.rpc import metrics, spans, tracing
from minmo.rpc.metadata import call_metadata
from minmo.settings import ServiceSettings, SettingsError

ELSEWHERE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def made() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracing.use(spans.Tracer("test", 1.0, exporter))
    yield exporter
    tracing.stop()


def finished(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    tracing.stop()
    return {span.name: span for span in exporter.get_finished_spans()}


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


def test_nothing_is_traced_by_default() -> None:
    trace = tracing.begin_trace("turn", session_id="s1")
    assert trace is tracing.NONE
    with tracing.within(trace), tracing.span("work") as span:
        assert span is tracing.NONE
        assert tracing.traceparent() == ""
        assert call_metadata("s1") == (("minmo-session", "s1"),)


def test_where_tracing_is_off_nothing_that_makes_or_sends_spans_is_imported() -> None:
    imports = (
        "services.gateway.process, services.orchestrator.service, services.voice_decoder.service"
    )
    # The client of Redis imports a part of OpenTelemetry by itself, where it is installed.
    program = (
        f"import sys, minmo.rpc.server, {imports}\n"
        "heavy = ('minmo.rpc.spans', 'opentelemetry.sdk.trace', 'opentelemetry.exporter')\n"
        "print([name for name in sys.modules if name.startswith(heavy)])"
    )
    command = [sys.executable, "-c", program]
    assert subprocess.check_output(command, text=True, timeout=60).strip() == "[]"


async def test_calls_and_tasks_of_a_turn_belong_to_its_trace(made: InMemorySpanExporter) -> None:
    async def work() -> str:
        with tracing.span("work", kind="client"):
            return dict(call_metadata("s1"))["traceparent"]

    trace = tracing.begin_trace("turn", session_id="s1")
    with tracing.within(trace):
        task = asyncio.create_task(work())
    assert tracing.traceparent() == ""
    sent = await task
    trace.end()
    found = finished(made)
    assert found["work"].parent is not None
    assert found["work"].parent.span_id == id_of(found["turn"])
    assert sent.split("-")[2] == f"{id_of(found['work']):016x}"
    assert found["turn"].parent is None
    assert found["turn"].attributes == {"minmo.session_id": "s1"}


def test_a_trace_that_another_process_began_is_continued(made: InMemorySpanExporter) -> None:
    tracing.begin("recognise", parent=ELSEWHERE, kind="server").end()
    span = finished(made)["recognise"]
    assert span.parent is not None
    assert f"{span.parent.trace_id:032x}-{span.parent.span_id:016x}" == ELSEWHERE[3:-3]


@pytest.mark.parametrize("given", ["", "nonsense", ELSEWHERE[:-2] + "00"])
def test_without_a_trace_to_be_in_there_is_no_span(made: InMemorySpanExporter, given: str) -> None:
    span = tracing.begin("recognise", parent=given)
    assert span is tracing.NONE
    assert tracing.begin("step", parent=span) is tracing.NONE
    assert not finished(made)


@pytest.mark.parametrize("given", [b"\xff", "00-abc-def-01", ELSEWHERE + "\n", ELSEWHERE.upper()])
def test_what_is_no_traceparent_is_not_passed_on(
    made: InMemorySpanExporter, given: str | bytes
) -> None:
    assert tracing.traceparent_of([("traceparent", given)]) == ""


def test_a_trace_that_is_not_sampled_costs_no_span_anywhere() -> None:
    exporter = InMemorySpanExporter()
    tracing.use(spans.Tracer("test", 0.0, exporter))
    trace = tracing.begin_trace("turn")
    assert trace is tracing.NONE
    assert not finished(exporter)


def test_turns_are_linked_to_what_the_client_does(made: InMemorySpanExporter) -> None:
    tracing.begin_trace("turn", link=ELSEWHERE).end()
    (link,) = finished(made)["turn"].links
    assert f"{link.context.trace_id:032x}" == ELSEWHERE[3:35]


def test_a_span_has_the_times_that_it_was_told(made: InMemorySpanExporter) -> None:
    now = time.monotonic()
    trace = tracing.begin_trace("turn", began=now - 2)
    tracing.begin("stage", parent=trace, began=now - 1.5).end(now - 1.25)
    trace.end(now)
    found = finished(made)
    stage, turn = found["stage"], found["turn"]
    assert stage.start_time is not None and stage.end_time is not None
    assert turn.start_time is not None and turn.end_time is not None
    assert stage.start_time - turn.start_time == pytest.approx(0.5e9, abs=2e3)
    assert stage.end_time - stage.start_time == pytest.approx(0.25e9, abs=2e3)
    assert turn.end_time / 1e9 == pytest.approx(time.time(), abs=5)


def test_a_clock_that_is_set_does_not_tear_a_trace_apart(
    made: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tracing.begin_trace("turn")
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() - 3600 * 10**9)
    tracing.begin("stage", parent=trace).end()
    trace.end()
    found = finished(made)
    turn, stage = found["turn"], found["stage"]
    assert turn.start_time is not None and turn.end_time is not None
    assert stage.start_time is not None
    assert turn.start_time <= stage.start_time <= turn.end_time


async def test_what_fails_and_what_is_cancelled_says_so(made: InMemorySpanExporter) -> None:
    trace = tracing.begin_trace("turn")
    with tracing.within(trace):
        with pytest.raises(KeyError), tracing.span("failing"):
            raise KeyError
        with pytest.raises(asyncio.CancelledError), tracing.span("cancelled"):
            raise asyncio.CancelledError
    trace.end(failure="UNAVAILABLE")
    trace.end()
    found = finished(made)
    assert not found["failing"].status.is_ok
    assert found["failing"].status.description == "KeyError"
    assert found["cancelled"].attributes == {"minmo.cancelled": True}
    assert found["turn"].status.description == "UNAVAILABLE"


class StuckExporter(SpanExporter):
    """Sends nothing before it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.taken = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.let_go.wait(30)
        self.taken += len(spans)
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self.let_go.set()


def count(fate: str) -> float:
    return metrics.SPANS.labels(fate)._value.get()


def test_a_collector_that_hangs_delays_nobody_and_what_does_not_fit_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spans, "_QUEUE_SPANS", 50)
    monkeypatch.setattr(spans, "_BATCH_SPANS", 10)
    exporter = StuckExporter()
    dropped, exported = count("dropped"), count("exported")
    tracing.use(spans.Tracer("test", 1.0, exporter))
    began = time.monotonic()
    for _ in range(200):
        tracing.begin_trace("turn").end()
    assert time.monotonic() - began < 1
    assert count("dropped") - dropped == 150
    exporter.let_go.set()
    tracing.stop()
    assert exporter.taken == 50
    assert count("exported") - exported == 50


def test_a_collector_that_hangs_does_not_keep_the_process() -> None:
    exporter = StuckExporter()
    tracing.use(spans.Tracer("test", 1.0, exporter))
    tracing.begin_trace("turn").end()
    began = time.monotonic()
    tracing.stop()
    assert time.monotonic() - began < 5
    exporter.let_go.set()


def test_a_collector_that_is_away_is_counted_and_costs_nothing_else() -> None:
    failed = count("failed")
    tracing.use(spans.Tracer("test", 1.0, spans.exporter("127.0.0.1:1")))
    tracing.begin_trace("turn").end()
    tracing.stop()
    deadline = time.monotonic() + 10
    while count("failed") == failed:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert count("failed") - failed == 1


@pytest.mark.parametrize("given", ["collector", "http://collector", "ftp://collector:1", ":4317"])
def test_an_endpoint_that_cannot_be_one_is_refused_by_name(given: str) -> None:
    with pytest.raises(SettingsError, match="--tracing-endpoint"):
        ServiceSettings.parse("minmo-test", ["--tracing-endpoint", given])


@pytest.mark.parametrize("given", ["collector:4317", "http://[::1]:4317/", "https://c.example:443"])
def test_an_endpoint_is_an_address_or_a_url(given: str) -> None:
    settings = ServiceSettings.parse("minmo-test", ["--tracing-endpoint", given])
    assert settings.tracing_endpoint == given.rstrip("/")


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ServiceSettings.parse("minmo-test", ["--tracing-endpoint", "collector:4317"])
    monkeypatch.setitem(sys.modules, "minmo.rpc.spans", None)
    with pytest.raises(tracing.TracingError, match=r"minmo\[tracing\]"):
        tracing.start("test", settings)
