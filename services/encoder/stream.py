"""One Encode stream: what comes in, in order, and what goes out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from concurrent.futures import Executor
from functools import partial
from typing import Any, TypeVar

import grpc

from minmo.audio.pcm import AudioError, PcmFormat, Samples
from minmo.audio.resample import LISTENING_RATE_HZ
from minmo.audio.vad import Activity, VadThresholds
from minmo.rpc import metrics, tracing
from minmo.rpc.errors import (
    DRAINING,
    StatusError,
    deadline_exceeded,
    error,
    failed_precondition,
    invalid_argument,
    unavailable,
)
from minmo.rpc.health import Readiness
from minmo.rpc.queues import BoundedStream
from minmo.settings import EncoderSettings
from minmo.v1 import common_pb2, encoder_pb2
from minmo.weights.errors import WeightsError
from services.encoder.compute import ComputeQueue
from services.encoder.intake import AudioIntake
from services.encoder.models import ListeningModels
from services.encoder.segment import Segment

# Answers that wait for a caller who does not read.
_MAX_ANSWERS_WAITING = 256
# A segment further behind than this holds up the audio that follows.
_MAX_LAG_SAMPLES = 5 * LISTENING_RATE_HZ
# Silence after which the next words are probably another turn.
_SILENCE_BEFORE_LEAVING = LISTENING_RATE_HZ
# Positions that a caller computes from its own rate may be rounded differently.
_ROUNDING_SAMPLES = 16

Result = TypeVar("Result")
Requests = AsyncIterator[encoder_pb2.EncodeRequest]


class EncodeStream:
    """Serves one stream.

    Args:
        settings: limits of a stream.
        models: of the process.
        compute: the compute thread, shared with the other streams.
        listening: the thread of voice activity, which never waits for a recognition.
        readiness: of the process; once it drains, the stream ends between two segments.
    """

    def __init__(
        self,
        settings: EncoderSettings,
        models: ListeningModels,
        compute: ComputeQueue,
        listening: Executor,
        readiness: Readiness,
    ) -> None:
        self._settings = settings
        self._models = models
        self._compute = compute
        self._listening = listening
        self._readiness = readiness
        self._reading: asyncio.Task[None] | None = None
        self._heard: Activity | None = None
        self._leaves = False
        self._answers: BoundedStream[encoder_pb2.EncodeResponse] = BoundedStream(
            _MAX_ANSWERS_WAITING, put_timeout_seconds=settings.read_deadline_seconds
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._format = PcmFormat(LISTENING_RATE_HZ)
        self._sequence = 0
        self._segment: Segment | None = None
        # The jobs of the open segment, and of those that end.
        self._embedding: dict[Segment, asyncio.Task[None]] = {}

    async def serve(self, requests: Requests) -> AsyncGenerator[encoder_pb2.EncodeResponse]:
        """Reads requests and gives answers until both have ended, or one fails.

        Raises:
            StatusError: what the caller did wrong; or that the process stops, and another encoder
                is to go on.
        """
        self._reading = self._spawn(self._read(requests))
        leaving = asyncio.create_task(self._leave())
        try:
            async for answer in self._answers:
                yield answer
            if self._leaves:
                raise unavailable(
                    "the encoder is stopping: open another stream, and send what is still needed",
                    reason=DRAINING,
                )
        finally:
            tasks = [leaving, *self._tasks]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs `work` beside the rest; its failure ends the stream."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            self._answers.fail(failure)
        self._leave_between_segments()

    async def _leave(self) -> None:
        await self._readiness.wait_draining()
        self._leave_between_segments()

    def _leave_between_segments(self) -> None:
        """Ends the stream of a process that stops, unless something is said or computed."""
        heard = self._heard
        quiet = heard is None or not (
            heard.speaking
            or 0 < heard.speech_end_sample > heard.end_sample - _SILENCE_BEFORE_LEAVING
        )
        idle = self._segment is None and not self._tasks - {self._reading}
        if self._readiness.draining and quiet and idle:
            self._leaves = True
            self._answers.close()

    async def _read(self, requests: Requests) -> None:
        intake = await self._open(requests)
        async for request in self._in_time(requests):
            match request.WhichOneof("message"):
                case "audio":
                    await self._hear(intake, request.audio)
                case "recognize":
                    self._recognise(intake, request.recognize)
                case "start_embedding":
                    self._start_embedding(intake, request.start_embedding)
                case "end_embedding":
                    self._end_embedding(intake, request.end_embedding)
                case "config":
                    raise invalid_argument(
                        "config",
                        "the stream has one already: open another stream for other settings",
                        limit="1 per stream",
                    )
                case _:
                    raise invalid_argument("message", "it is empty: set one of its fields")
        await self._flush(intake)
        self._answers.close()

    async def _open(self, requests: Requests) -> AudioIntake:
        seconds = self._settings.config_deadline_seconds
        try:
            async with asyncio.timeout(seconds):
                first = await anext(requests, None)
        except TimeoutError:
            raise deadline_exceeded(
                f"the stream sent nothing for {seconds:g} s: send `config` first",
                limit=f"{seconds:g} s",
                reason="NO_CONFIG",
            ) from None
        if first is None:
            raise invalid_argument("config", "the stream ended without it: send `config` first")
        kind = first.WhichOneof("message")
        if kind != "config":
            raise invalid_argument(
                "config", f"the first message is {kind or 'empty'}: send `config` first"
            )
        try:
            audio_format = PcmFormat.from_proto(first.config.format)
        except AudioError as problem:
            raise _refuse(f"config.format.{problem.field}", problem) from None
        schedule = self._models.schedule
        await self._answers.put(
            encoder_pb2.EncodeResponse(
                ready=encoder_pb2.EncodeReady(
                    embedding_width=self._models.width,
                    look_ahead_samples=schedule.longest_wait if schedule is not None else 0,
                )
            )
        )
        self._format = audio_format
        return AudioIntake(
            audio_format,
            first.config.start_sample,
            self._models.vad.stream(),
            VadThresholds.starting_at(self._settings.vad_threshold),
            self._settings.max_buffer_seconds,
        )

    async def _in_time(self, requests: Requests) -> AsyncGenerator[encoder_pb2.EncodeRequest]:
        seconds = self._settings.idle_deadline_seconds
        while True:
            try:
                async with asyncio.timeout(seconds):
                    request = await anext(requests, None)
            except TimeoutError:
                raise deadline_exceeded(
                    f"nothing came for {seconds:g} s: end a stream that is not used, or send "
                    "silence",
                    limit=f"{seconds:g} s",
                    reason="IDLE",
                ) from None
            if request is None:
                return
            yield request

    async def _hear(self, intake: AudioIntake, chunk: common_pb2.AudioChunk) -> None:
        self._check(chunk)
        before, began = intake.end, time.perf_counter()
        try:
            activity = await asyncio.get_running_loop().run_in_executor(
                self._listening, intake.hear, chunk.data
            )
        except AudioError as problem:
            raise _refuse(f"audio.{problem.field}", problem) from None
        metrics.ENCODER_AUDIO.inc((intake.end - before) / LISTENING_RATE_HZ)
        metrics.ENCODER_FRAME.observe(time.perf_counter() - began)
        self._heard = activity
        await self._answers.put(_activity(activity))
        self._leave_between_segments()
        if self._segment is not None:
            self._extend(self._segment, intake, intake.end)
            if self._segment.samples_waiting > _MAX_LAG_SAMPLES:
                await asyncio.wait([self._embedding[self._segment]])

    def _check(self, chunk: common_pb2.AudioChunk) -> None:
        if chunk.sequence != self._sequence:
            raise invalid_argument(
                "audio.sequence",
                f"it is {chunk.sequence} where {self._sequence} was due: audio was lost or sent "
                "twice",
                reason="SEQUENCE_GAP",
            )
        self._sequence += 1
        most_bytes, most_seconds = self._settings.max_chunk_bytes, self._settings.max_chunk_seconds
        if len(chunk.data) > most_bytes:
            raise invalid_argument(
                "audio.data",
                f"{len(chunk.data)} bytes are too many: send smaller chunks, 20 to 100 ms each",
                limit=f"{most_bytes} bytes",
                reason="CHUNK_TOO_LARGE",
            )
        frames = len(chunk.data) // self._format.bytes_per_frame
        if frames > most_seconds * self._format.sample_rate_hz:
            raise invalid_argument(
                "audio.data",
                f"{frames / self._format.sample_rate_hz:.1f} s are too long: send smaller chunks, "
                "20 to 100 ms each",
                limit=f"{most_seconds:g} s",
                reason="CHUNK_TOO_LONG",
            )

    def _recognise(self, intake: AudioIntake, request: encoder_pb2.Recognize) -> None:
        start, end = request.start_sample, request.end_sample
        if end <= start:
            raise invalid_argument(
                "recognize.end_sample", f"{end} is not behind start_sample, {start}"
            )
        seconds, most = (end - start) / LISTENING_RATE_HZ, self._settings.max_segment_seconds
        if seconds > most:
            raise invalid_argument(
                "recognize.end_sample",
                f"{seconds:.1f} s are too long: ask for shorter segments",
                limit=f"{most:g} s",
                reason="SEGMENT_TOO_LONG",
            )
        _check_held(intake, "recognize.start_sample", start)
        _check_sent(intake, "recognize.end_sample", end)
        # Copied now: the buffer moves on while the job waits.
        samples = None if intake.is_silent(start, end) else intake.read(start, end)
        self._spawn(self._transcribe(request, samples))

    async def _transcribe(self, request: encoder_pb2.Recognize, samples: Samples | None) -> None:
        """Answers with the words of `[samples]`; None is silence, which has none."""
        text, seconds = "", 0.0
        with tracing.span("recognise", parent=request.traceparent, kind="server"):
            if samples is not None:
                text, seconds = await self._recognised(samples)
            transcript = encoder_pb2.SegmentTranscript(
                segment_id=request.segment_id,
                start_sample=request.start_sample,
                end_sample=request.end_sample,
                text=text,
                compute_ms=1000 * seconds,
            )
            await self._answers.put(encoder_pb2.EncodeResponse(transcript=transcript))

    async def _recognised(self, samples: Samples) -> tuple[str, float]:
        """The words of `[samples]`, and the seconds that it took."""
        # The recogniser may have to be loaded, which is the compute thread's work.
        text, seconds = await self._run(
            lambda: self._models.recogniser.transcribe(samples), "recognise"
        )
        _observe_real_time_factor(seconds, len(samples))
        return text, seconds

    def _start_embedding(self, intake: AudioIntake, request: encoder_pb2.StartEmbedding) -> None:
        if self._segment is not None:
            raise failed_precondition(
                f"segment {self._segment.segment_id} is open: end or discard it before starting "
                f"segment {request.segment_id}",
                reason="SEGMENT_OPEN",
            )
        models = self._models
        if models.schedule is None:
            raise failed_precondition(models.why_none, reason="NOT_TRAINED")
        start = request.start_sample
        _check_held(intake, "start_embedding.start_sample", start)
        _check_sent(intake, "start_embedding.start_sample", start)
        embedder = partial(models.embedder, probes=request.probes)
        self._segment = Segment(
            request.segment_id, start, embedder, models.schedule, models.text_of
        )
        self._segment.trace = tracing.begin("embed", parent=request.traceparent, kind="server")
        self._extend(self._segment, intake, intake.end)

    def _end_embedding(self, intake: AudioIntake, request: encoder_pb2.EndEmbedding) -> None:
        segment, end = self._segment, request.end_sample
        if request.discard:
            self._discard(request.segment_id)
            return
        if segment is None or segment.segment_id != request.segment_id:
            held = "none" if segment is None else f"segment {segment.segment_id}"
            raise failed_precondition(
                f"segment {request.segment_id} cannot end: {held} is open",
                reason="SEGMENT_NOT_OPEN",
            )
        if end < segment.start:
            raise invalid_argument(
                "end_embedding.end_sample", f"{end} is before the segment's start, {segment.start}"
            )
        _check_sent(intake, "end_embedding.end_sample", end)
        self._finish(segment, intake, end)

    def _discard(self, segment_id: int) -> None:
        for segment in [*self._embedding, self._segment]:
            if segment is not None and segment.segment_id == segment_id:
                segment.trace.end()
                if task := self._embedding.pop(segment, None):
                    task.cancel()
                if segment is self._segment:
                    self._segment = None

    def _finish(self, segment: Segment, intake: AudioIntake, end: int) -> None:
        self._segment = None
        if end > segment.received:
            segment.add(intake.read(segment.received, end))
        segment.end_at(end)
        self._embed(segment)

    def _extend(self, segment: Segment, intake: AudioIntake, end: int) -> None:
        if end > segment.received:
            segment.add(intake.read(segment.received, end))
        self._embed(segment)

    def _embed(self, segment: Segment) -> None:
        """Sees to it that somebody does the segment's work."""
        if segment.has_work and segment not in self._embedding:
            self._embedding[segment] = self._spawn(self._work_on(segment))

    async def _work_on(self, segment: Segment) -> None:
        while segment.has_work:
            samples = segment.samples_waiting
            job = segment.next_job()
            samples -= segment.samples_waiting
            made, seconds = await self._run(job, "embed")
            if samples:
                _observe_real_time_factor(seconds, samples)
            segment.compute_seconds += seconds
            for answer in segment.answers(made, final=segment.is_complete):
                await self._answers.put(answer)
            if segment.is_complete:
                segment.trace.set(compute_ms=1000 * segment.compute_seconds)
                segment.trace.end()
        self._embedding.pop(segment, None)

    async def _run(self, work: Callable[[], Result], kind: metrics.Job) -> tuple[Result, float]:
        """Runs `work` on the compute thread; gives its result and the seconds that it took."""
        try:
            return await self._compute.run(self, partial(_timed, work), kind)
        except WeightsError as failure:
            raise failed_precondition(str(failure), reason="WEIGHTS_UNUSABLE") from failure

    async def _flush(self, intake: AudioIntake) -> None:
        """The caller sends no more: ends the open segment, waits for what is computed."""
        if self._segment is not None:
            self._finish(self._segment, intake, intake.sent_end)
        others = self._tasks - {asyncio.current_task()}
        if others:
            await asyncio.wait(others)


def _check_held(intake: AudioIntake, field: str, start: int) -> None:
    if start < intake.held_start:
        raise error(
            grpc.StatusCode.OUT_OF_RANGE,
            "AUDIO_NOT_HELD",
            f"{field}: sample {start} is not held any more, or never was: the stream holds samples "
            f"{intake.held_start} to {intake.sent_end}",
            metadata=_held(field, intake),
        )


def _check_sent(intake: AudioIntake, field: str, position: int) -> None:
    if position > intake.sent_end + _ROUNDING_SAMPLES:
        raise error(
            grpc.StatusCode.OUT_OF_RANGE,
            "AUDIO_NOT_SENT",
            f"{field}: sample {position} has not been sent: the stream holds samples "
            f"{intake.held_start} to {intake.sent_end}",
            metadata=_held(field, intake),
        )


def _held(field: str, intake: AudioIntake) -> dict[str, str]:
    return {
        "field": field,
        "held_start_sample": str(intake.held_start),
        "held_end_sample": str(intake.sent_end),
    }


def _refuse(field: str, problem: AudioError) -> StatusError:
    return invalid_argument(
        field, f"{problem.value} cannot be used: {problem.allowed}", limit=problem.allowed
    )


def _activity(activity: Activity) -> encoder_pb2.EncodeResponse:
    return encoder_pb2.EncodeResponse(
        activity=encoder_pb2.VoiceActivity(
            end_sample=activity.end_sample,
            probability=activity.probability,
            speaking=activity.speaking,
            speech_start_sample=activity.speech_start_sample,
            speech_end_sample=activity.speech_end_sample,
        )
    )


def _timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """The result of `work`, and the seconds that it took."""
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def _observe_real_time_factor(seconds: float, samples: int) -> None:
    metrics.ENCODER_REAL_TIME.observe(seconds * LISTENING_RATE_HZ / samples)
