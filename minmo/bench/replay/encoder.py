"""An encoder that knows a few questions: it says of each frame what a real one said of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import grpc

from minmo.bench.arrivals import RATE_HZ
from minmo.bench.replay.recording import Activity, Question, Recording, digest
from minmo.bench.replay.settings import EncoderSettings
from minmo.rpc.errors import failed_precondition, invalid_argument
from minmo.rpc.queues import BoundedStream
from minmo.v1 import encoder_pb2, encoder_pb2_grpc

_LIMIT = 4096
_FRAME_BYTES = 960
_FRAME_SAMPLES = 320
_SILENCE = bytes(_FRAME_BYTES)
_QUIET = Activity(seconds=0.0, probability=0.0, speaking=False, speech_start=None, speech_end=None)


@dataclass(frozen=True)
class _Anchor:
    """A question in the stream: where its first frame is, in samples at 16 kHz."""

    question: Question
    start: int


class Ear:
    """Follows the frames of one stream. No I/O and no clock.

    Args:
        recording: the questions.
        start: position of the stream's first sample, at 16 kHz.
    """

    def __init__(self, recording: Recording, start: int) -> None:
        self._known = {
            name: (question, place)
            for question in recording.questions
            for place, name in enumerate(question.frames)
        }
        self._position = start
        self._anchors: list[_Anchor] = []
        self._place = 0
        self._speech = (0, 0)

    def hear(self, frame: bytes) -> tuple[encoder_pb2.VoiceActivity, float]:
        """What is said of the next frame, and how many seconds after it came."""
        known = None if frame == _SILENCE else self._known.get(digest(frame))
        if known is not None:
            question, self._place = known
            start = self._position - self._place * _FRAME_SAMPLES
            anchor = _Anchor(question, start)
            if not self._anchors or self._anchors[-1] != anchor:
                self._anchors.append(anchor)
        heard = self._heard()
        self._place += 1
        self._position += _FRAME_SAMPLES
        if self._anchors and heard.speech_start is not None and heard.speech_end is not None:
            start = self._anchors[-1].start
            self._speech = (start + heard.speech_start, start + heard.speech_end)
        activity = encoder_pb2.VoiceActivity(
            end_sample=self._position,
            probability=heard.probability,
            speaking=heard.speaking,
            speech_start_sample=max(0, self._speech[0]),
            speech_end_sample=max(0, self._speech[1]),
        )
        return activity, heard.seconds

    def words(self, start: int, end: int) -> tuple[str, float, float]:
        """The words between two positions; seconds until they are known, and of computing, in ms.

        Of a question that began there, as much as had been recognised by about the same place.
        """
        texts, seconds, compute_ms = [], 0.0, 0.0
        for anchor in self._anchors:
            if not start <= anchor.start + len(anchor.question.frames) * _FRAME_SAMPLES:
                continue
            if anchor.start >= end or not anchor.question.words:
                continue
            known = min(
                anchor.question.words, key=lambda words: abs(words.end - (end - anchor.start))
            )
            texts.append(known.text)
            seconds, compute_ms = max(seconds, known.seconds), max(compute_ms, known.compute_ms)
        return " ".join(text for text in texts if text), seconds, compute_ms

    def _heard(self) -> Activity:
        if not self._anchors:
            return _QUIET
        heard = self._anchors[-1].question.heard
        return heard[self._place] if self._place < len(heard) else _QUIET


class ReplayedEncoder:
    """The encoder, for `minmo.rpc.server.serve`."""

    name = "encoder"

    def __init__(self, settings: EncoderSettings) -> None:
        self._servicer = _Servicer(settings)

    async def start(self) -> None:
        """Reads the recording."""
        await asyncio.to_thread(self._servicer.load)

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        """Adds the servicer."""
        encoder_pb2_grpc.add_EncoderServiceServicer_to_server(self._servicer, server)
        return [encoder_pb2.DESCRIPTOR.services_by_name["EncoderService"].full_name]

    async def stop(self) -> None:
        """Has nothing to release."""


class _Servicer(encoder_pb2_grpc.EncoderServiceServicer):
    def __init__(self, settings: EncoderSettings) -> None:
        self._settings = settings
        self._recording: Recording | None = None

    def load(self) -> None:
        """Reads the recording."""
        self._recording = Recording.read(self._settings.recording)

    async def Encode(  # noqa: N802
        self,
        request_iterator: AsyncIterator[encoder_pb2.EncodeRequest],
        context: grpc.aio.ServicerContext[encoder_pb2.EncodeRequest, encoder_pb2.EncodeResponse],
    ) -> AsyncIterator[encoder_pb2.EncodeResponse]:
        """Listens to one audio stream; the proto says how."""
        assert self._recording is not None, "calls are let in after the start"
        stream = _Stream(self._recording, self._settings.read_deadline_seconds)
        async with aclosing(stream.serve(request_iterator)) as answers:
            async for answer in answers:
                yield answer


class _Stream:
    def __init__(self, recording: Recording, read_seconds: float) -> None:
        self._recording = recording
        self._answers: BoundedStream[encoder_pb2.EncodeResponse] = BoundedStream(
            _LIMIT, put_timeout_seconds=read_seconds
        )
        self._due: asyncio.Queue[tuple[float, encoder_pb2.EncodeResponse] | None] = asyncio.Queue(
            _LIMIT
        )
        self._later: set[asyncio.Task[None]] = set()

    async def serve(
        self, requests: AsyncIterator[encoder_pb2.EncodeRequest]
    ) -> AsyncGenerator[encoder_pb2.EncodeResponse]:
        """Answers until the requests have ended."""
        tasks = [asyncio.create_task(self._read(requests)), asyncio.create_task(self._send())]
        try:
            async for answer in self._answers:
                yield answer
        finally:
            for task in [*tasks, *self._later]:
                task.cancel()
            await asyncio.gather(*tasks, *self._later, return_exceptions=True)

    async def _read(self, requests: AsyncIterator[encoder_pb2.EncodeRequest]) -> None:
        try:
            config = (await anext(requests)).config
            if config.format.sample_rate_hz != RATE_HZ:
                raise invalid_argument("config.format", f"the recording is of {RATE_HZ} Hz")
            ear = Ear(self._recording, config.start_sample)
            await self._answers.put(encoder_pb2.EncodeResponse(ready=encoder_pb2.EncodeReady()))
            loop = asyncio.get_running_loop()
            async for request in requests:
                match request.WhichOneof("message"):
                    case "audio":
                        activity, seconds = ear.hear(request.audio.data)
                        answer = encoder_pb2.EncodeResponse(activity=activity)
                        await self._due.put((loop.time() + seconds, answer))
                    case "recognize":
                        self._recognise(ear, request.recognize)
                    case kind:
                        raise failed_precondition(f"{kind} was not recorded", reason="NOT_TRAINED")
            await self._due.put(None)
        except Exception as failure:
            self._answers.fail(failure)

    async def _send(self) -> None:
        """Activities go out in order, each when it is due."""
        loop = asyncio.get_running_loop()
        while (waiting := await self._due.get()) is not None:
            due, answer = waiting
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
            await self._answers.put(answer)
        await asyncio.gather(*self._later)
        self._answers.close()

    def _recognise(self, ear: Ear, asked: encoder_pb2.Recognize) -> None:
        text, seconds, compute_ms = ear.words(asked.start_sample, asked.end_sample)
        transcript = encoder_pb2.SegmentTranscript(
            segment_id=asked.segment_id,
            start_sample=asked.start_sample,
            end_sample=asked.end_sample,
            text=text,
            compute_ms=compute_ms,
        )

        async def answer() -> None:
            await asyncio.sleep(seconds)
            await self._answers.put(encoder_pb2.EncodeResponse(transcript=transcript))

        task = asyncio.create_task(answer())
        self._later.add(task)
        task.add_done_callback(self._later.discard)
