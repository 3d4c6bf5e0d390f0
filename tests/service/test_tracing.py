"""A real service that continues traces: what a collector gets of it, and what it lives through."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from minmo.rpc.client import channel
from minmo.v1.voice_decoder_pb2_grpc import VoiceDecoderServiceStub
from tests.otlp_collector import Collector, Taken, collecting
from tests.service.test_voice_decoder import END, Config, Process, Request, audio_format, tokens

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"
CALL_SECONDS = 20.0
END_SECONDS = 8.0


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Process]:
    process = Process(tmp_path_factory.mktemp("traced"), "--tracing-endpoint", collector.address)
    yield process
    process.close()


@asynccontextmanager
async def voice(process: Process) -> AsyncIterator[VoiceDecoderServiceStub]:
    async with channel(process.address) as connection:
        yield VoiceDecoderServiceStub(connection)


async def speak(stub: VoiceDecoderServiceStub, traceparent: str = "") -> int:
    """Says something; how many bytes of audio came."""

    async def requests() -> AsyncIterator[Request]:
        yield Request(config=Config(format=audio_format()))
        yield tokens("Paris", " is", " a", " city.")
        yield END

    metadata = (("traceparent", traceparent),) if traceparent else ()
    count = 0
    async for answer in stub.Decode(requests(), timeout=CALL_SECONDS, metadata=metadata):
        count += len(answer.audio.data)
    return count


def named(spans: list[Taken], name: str) -> Taken:
    (found,) = [span for span in spans if span.name == name]
    return found


async def test_a_call_continues_the_trace_that_it_carries(
    process: Process, collector: Collector
) -> None:
    async with voice(process) as stub:
        assert await speak(stub, TRACEPARENT) > 0
    await collector.wait_for(lambda spans: any(span.name == "decode" for span in spans))
    spans = collector.trace(TRACE_ID)
    decode = named(spans, "decode")
    assert decode.service == "voice_decoder"
    assert decode.parent_id == PARENT_ID
    for name in ("first_audio", "piece"):
        span = named(spans, name)
        assert span.parent_id == decode.span_id
        assert decode.began <= span.began <= span.ended <= decode.ended
    assert named(spans, "piece").attributes["minmo.audio_ms"] > 200


async def test_a_call_without_a_trace_begins_none(process: Process, collector: Collector) -> None:
    known = {span.trace_id for span in collector.spans}
    async with voice(process) as stub:
        assert await speak(stub) > 0
        # What comes later was not made earlier.
        await speak(stub, TRACEPARENT.replace(TRACE_ID, "f" * 32))
    await collector.wait_for(lambda spans: any(span.trace_id == "f" * 32 for span in spans))
    assert {span.trace_id for span in collector.spans} <= known | {TRACE_ID, "f" * 32}
    assert process.metric('minmo_tracing_spans_total{outcome="exported"}') >= 3
    assert process.metric('minmo_tracing_spans_total{outcome="dropped"}') == 0


async def test_a_collector_that_takes_nothing_disturbs_no_call_and_no_end(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        host, port = mute.getsockname()
        process = Process(tmp_path, "--tracing-endpoint", f"{host}:{port}")
        try:
            async with voice(process) as stub:
                for _ in range(3):
                    assert await speak(stub, TRACEPARENT) > 0

            async def failed() -> None:
                while not process.metric('minmo_tracing_spans_total{outcome="failed"}'):
                    await asyncio.sleep(0.05)

            await asyncio.wait_for(failed(), CALL_SECONDS)
            async with voice(process) as stub:
                assert await speak(stub, TRACEPARENT) > 0
        finally:
            process.popen.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.popen.wait, END_SECONDS) == 0
