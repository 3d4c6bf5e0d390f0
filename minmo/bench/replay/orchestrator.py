"""An orchestrator that computes nothing: it sends what a real one sent once, at the same times.

``python -m minmo.bench.replay.orchestrator RECORDING`` prints its address as JSON, then a line for
each stream that has ended. With it a gateway can be measured with more conversations than the
models of a machine could hold. `record` makes a recording.
"""

from __future__ import annotations

import asyncio
import json
import struct
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from minmo.audio.pcm import PcmFormat
from minmo.bench.arrivals import FRAME_SECONDS, RATE_HZ
from minmo.client.errors import ClientError
from minmo.client.recording import Recording
from minmo.client.target import Target
from minmo.rpc.errors import parse
from minmo.v1 import common_pb2, conversation_pb2
from minmo.v1.conversation_pb2 import ConverseRequest, ConverseResponse
from minmo.v1.conversation_pb2_grpc import ConversationServiceStub

if TYPE_CHECKING:
    from minmo.v1.conversation_pb2_grpc import ConversationServiceAsyncStub

PAUSE_SECONDS = 1.0
"""Silence between an answer and the next question."""
_SERVICE = "minmo.v1.ConversationService"
_HEADER = struct.Struct("<dI")
_RECORD_SECONDS = 60.0


@dataclass(frozen=True)
class Replayed:
    """One message of the real orchestrator.

    Attributes:
        seconds: when it came, after the first audio was sent.
        response: the message.
    """

    seconds: float
    response: ConverseResponse


async def record(target: Target, question: Recording, max_answer_tokens: int) -> list[Replayed]:
    """Asks a question and keeps all messages up to the report of the answer.

    Raises:
        StatusError: the server refused or is gone.
        ClientError: there was no answer.
    """
    try:
        async with asyncio.timeout(_RECORD_SECONDS):
            return await _record(target, question, max_answer_tokens)
    except grpc.RpcError as failure:
        raise parse(failure) from None
    except TimeoutError:
        raise ClientError(
            f"{question.path} was not answered within {_RECORD_SECONDS:g} s"
        ) from None


async def _record(target: Target, question: Recording, max_answer_tokens: int) -> list[Replayed]:
    pcm = PcmFormat(RATE_HZ)
    data = pcm.encode(question.at_rate(RATE_HZ).samples)
    size = 2 * round(RATE_HZ * FRAME_SECONDS)
    config = conversation_pb2.ConverseConfig(
        settings=conversation_pb2.SessionSettings(max_answer_tokens=max_answer_tokens),
        input_format=pcm.to_proto(),
        output_format=pcm.to_proto(),
        reports_playback=True,
    )
    kept: list[Replayed] = []
    async with target.channel() as channel:
        stub: ConversationServiceAsyncStub = ConversationServiceStub(channel)
        call = stub.Converse()
        await call.write(ConverseRequest(config=config))
        ready = await call.read()
        assert isinstance(ready, ConverseResponse)
        began = time.monotonic()

        async def speak() -> None:
            due, number = began, 0
            while True:
                frame = data[number * size : (number + 1) * size].ljust(size, b"\0")
                chunk = common_pb2.AudioChunk(sequence=number, data=frame)
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                await call.write(ConverseRequest(audio=chunk))
                due, number = due + FRAME_SECONDS, number + 1

        speaking = asyncio.create_task(speak())
        try:
            while (response := await call.read()) is not grpc.aio.EOF:
                assert isinstance(response, ConverseResponse)
                kept.append(Replayed(time.monotonic() - began, response))
                if response.audio.final:
                    played = response.audio.first_sample + len(response.audio.data) // 2
                    playback = conversation_pb2.Playback(
                        utterance_id=response.audio.utterance_id,
                        played_samples=played,
                        finished=True,
                    )
                    await call.write(ConverseRequest(playback=playback))
                if response.HasField("report"):
                    break
        finally:
            speaking.cancel()
            await asyncio.gather(speaking, return_exceptions=True)
            call.cancel()
    return kept


def write(path: Path, recording: list[Replayed]) -> None:
    """Writes a recording."""
    with path.open("wb") as file:
        for one in recording:
            data = one.response.SerializeToString()
            file.write(_HEADER.pack(one.seconds, len(data)) + data)


def read(path: Path) -> list[Replayed]:
    """Reads a recording."""
    data, position, found = path.read_bytes(), 0, []
    while position < len(data):
        seconds, size = _HEADER.unpack_from(data, position)
        position += _HEADER.size
        response = ConverseResponse.FromString(data[position : position + size])
        found.append(Replayed(seconds, response))
        position += size
    return found


def cycle_seconds(recording: list[Replayed]) -> float:
    """Time from one question to the next: until the answer was played, and a pause."""
    audio = [one for one in recording if one.response.HasField("audio")]
    samples = sum(len(one.response.audio.data) // 2 for one in audio)
    heard = audio[0].seconds + samples / RATE_HZ
    return max(heard, recording[-1].seconds) + PAUSE_SECONDS


def of_cycle(recording: list[Replayed], cycle: int) -> Iterator[Replayed]:
    """The messages as they would be of a later turn of the same session."""
    shift_ms = round(cycle * cycle_seconds(recording) * 1000)
    for one in recording:
        response = ConverseResponse()
        response.CopyFrom(one.response)
        kind = response.WhichOneof("message")
        message: Any = getattr(response, kind) if kind else None
        names = message.DESCRIPTOR.fields_by_name if message is not None else {}
        for name in ("turn_index", "user_turn_index", "assistant_turn_index"):
            if name in names:
                setattr(message, name, getattr(message, name) + 2 * cycle)
        if "utterance_id" in names and message.utterance_id:
            message.utterance_id = f"{message.utterance_id}-{cycle}"
        if kind == "event":
            message.audio_ms += shift_ms
        yield Replayed(one.seconds + cycle * cycle_seconds(recording), response)


class _Replay:
    def __init__(self, recording: list[Replayed]) -> None:
        self._recording = recording

    def handler(self) -> grpc.GenericRpcHandler:
        """For a server."""
        method = grpc.stream_stream_rpc_method_handler(
            self.converse,
            request_deserializer=ConverseRequest.FromString,
            response_serializer=ConverseResponse.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(_SERVICE, {"Converse": method})

    async def converse(
        self, request_iterator: AsyncIterator[ConverseRequest], context: Any
    ) -> AsyncIterator[ConverseResponse]:
        requests = aiter(request_iterator)
        config = (await anext(requests)).config
        session_id = config.session_id or f"s{uuid.uuid4().hex[:24]}"
        ready = conversation_pb2.ConverseReady(session_id=session_id, mode="cascade")
        yield ConverseResponse(ready=ready)
        heard = _Heard()
        listening = asyncio.create_task(heard.run(requests))
        sequence = 1
        try:
            await heard.begun.wait()
            for cycle in range(1_000_000):
                for one in of_cycle(self._recording, cycle):
                    await asyncio.sleep(max(0.0, heard.began + one.seconds - time.monotonic()))
                    one.response.sequence = sequence
                    sequence += 1
                    yield one.response
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            print(json.dumps(heard.to_json()), flush=True)


class _Heard:
    """What arrived of one microphone, and how late."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.began = 0.0
        self._samples = 0
        self._gaps = 0
        self._late: list[float] = []

    async def run(self, requests: AsyncIterator[ConverseRequest]) -> None:
        due_sequence = 0
        async for request in requests:
            if not request.HasField("audio"):
                continue
            now = time.monotonic()
            if not self.begun.is_set():
                self.began = now
                self.begun.set()
            self._late.append(now - self.began - self._samples / RATE_HZ)
            self._gaps += request.audio.sequence != due_sequence
            due_sequence = request.audio.sequence + 1
            self._samples += len(request.audio.data) // 2

    def to_json(self) -> dict[str, float]:
        """Samples that came, gaps between them, and how much later than in time, in ms."""
        late = sorted(self._late) or [0.0]
        return {
            "samples": self._samples,
            "gaps": self._gaps,
            "late_p99_ms": 1000 * late[int(0.99 * (len(late) - 1))],
            "late_max_ms": 1000 * late[-1],
        }


async def _serve(path: Path) -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([_Replay(read(path)).handler()])
    ready = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(ready, server)
    await ready.set("", health_pb2.HealthCheckResponse.SERVING)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"address": f"127.0.0.1:{port}"}), flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    import uvloop

    uvloop.run(_serve(Path(sys.argv[1])))
