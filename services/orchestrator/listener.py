"""The encoder, as a conversation sees it: one stream that survives the loss of the encoder.

The latest audio is kept in memory. When the encoder is lost, the next one gets it again from the
start of what is still needed (the user's open turn), at the same positions, and unanswered
questions are asked again. An encoder that stops ends the stream between two segments: the next one
goes on without anybody being told.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc
import structlog

from minmo.rpc import metrics, tracing
from minmo.rpc.errors import DRAINING, StatusError, parse, status_of, unavailable
from minmo.rpc.metadata import call_metadata
from minmo.v1 import common_pb2, encoder_pb2
from minmo.v1.encoder_pb2_grpc import EncoderServiceStub
from services.orchestrator.retry import LOST, Outage
from services.orchestrator.turn_taking import SAMPLE_RATE_HZ, Activity, samples

if TYPE_CHECKING:
    from minmo.v1.encoder_pb2_grpc import EncoderServiceAsyncStub

log = structlog.get_logger()

KEEP_SECONDS = 40.0
"""Audio that is kept to give to another encoder."""
_PREROLL_MS = 1000.0
_FEED_LIMIT = 256


@dataclass(frozen=True)
class Transcript:
    """The words of a stretch of the user's audio (samples at 16 kHz)."""

    start: int
    end: int
    text: str
    compute_ms: float


@dataclass(frozen=True)
class Embeddings:
    """The next speech embeddings of the open segment, maybe none.

    Attributes:
        segment_id: the segment.
        matrix: one row each.
        text: what is said in the segment so far.
        end: all up to here, in samples at 16 kHz, is in the rows so far.
        final: whether no more will come.
    """

    segment_id: int
    matrix: common_pb2.FloatMatrix
    text: str
    end: int
    final: bool


@dataclass(frozen=True)
class Probe:
    """How the user sounds in a step of the open segment.

    Attributes:
        segment_id: the segment.
        matrix: one row.
        end: the step's end, in samples at 16 kHz.
    """

    segment_id: int
    matrix: common_pb2.FloatMatrix
    end: int


@dataclass(frozen=True)
class Lost:
    """The encoder is gone; the listener looks for another."""

    detail: str


@dataclass(frozen=True)
class Found:
    """An encoder listens again."""


@dataclass(frozen=True)
class Failed:
    """The listener has given up."""

    error: StatusError


_Call = grpc.aio.StreamStreamCall[encoder_pb2.EncodeRequest, encoder_pb2.EncodeResponse]

_Outbox = asyncio.Queue[encoder_pb2.EncodeRequest | None]
"""Messages of one stream, None behind the last."""

Heard = Activity | Embeddings | Probe | Lost | Found | Failed


@dataclass
class _Chunk:
    start: int
    end: int
    data: bytes


@dataclass
class _Segment:
    """What is known of the open segment.

    Attributes:
        received: rows since `start`.
        before: what was said before `start`, where it was moved.
        text: what was said since.
        heard_until: all up to here is in the rows.
        probes: whether its steps are probed.
        probed_until: end of the latest of them.
    """

    segment_id: int
    start: int
    traceparent: str = ""
    probes: bool = False
    probed_until: int = 0
    end: int | None = None
    received: int = 0
    before: str = ""
    text: str = ""
    heard_until: int = 0

    def go_on_from(self, position: int) -> None:
        """Moves the start: the audio before `position` cannot be had again."""
        self.start = max(position, self.heard_until)
        if self.end is not None:
            self.start = min(self.start, self.end)
        self.before, self.text, self.received = self.words, "", 0

    @property
    def words(self) -> str:
        """All that was said."""
        return " ".join(part for part in (self.before, self.text) if part)


@dataclass
class _Question:
    start: int
    end: int
    traceparent: str = ""
    answer: asyncio.Future[Transcript] = field(default_factory=asyncio.Future)
    asked: float = field(default_factory=time.monotonic)


class Listener:
    """Sends the user's audio to the encoder and tells what it hears.

    Args:
        channel: to the encoder service.
        audio_format: of the audio that `feed` takes.
        on_heard: gets everything that is heard, in order.
        deadline_seconds: longest wait for an encoder to answer or to come back.
        session: for the encoder's logs.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        audio_format: common_pb2.AudioFormat,
        on_heard: Callable[[Heard], Awaitable[None]],
        *,
        deadline_seconds: float,
        session: str,
    ) -> None:
        self._stub: EncoderServiceAsyncStub = EncoderServiceStub(channel)
        self._format = audio_format
        self._on_heard = on_heard
        self._deadline = deadline_seconds
        self._session = session
        width = 4 if audio_format.encoding == common_pb2.AUDIO_ENCODING_PCM_F32LE else 2
        self._frame_bytes = width * audio_format.channels
        self._frames = 0
        self._chunks: deque[_Chunk] = deque()
        self._needed_from = 0
        self._questions: dict[int, _Question] = {}
        self._segment: _Segment | None = None
        self._ids = itertools.count(1)
        self._outbox: _Outbox = asyncio.Queue(_FEED_LIMIT)
        self._arrivals: deque[tuple[int, float]] = deque(maxlen=4096)
        self._progress = time.monotonic()
        self._heard_until = 0
        self._unanswered = 0
        self._ended_segment = 0.0
        self._caught_up = asyncio.Event()
        self._outage = Outage(deadline_seconds, self._tell)

    @property
    def position(self) -> int:
        """Samples at 16 kHz of all the audio that was fed."""
        return self._to_16k(self._frames)

    @property
    def heard_until(self) -> int:
        """Samples at 16 kHz that the encoder has heard."""
        return self._heard_until

    @property
    def heard_all(self) -> bool:
        """Whether the encoder has answered to all audio."""
        return self._unanswered == 0

    async def catch_up(self) -> None:
        """Waits until all audio that was fed has been heard, and told; or until it has failed."""
        while self._unanswered:
            self._caught_up.clear()
            await self._caught_up.wait()

    def arrival(self, position: int) -> float:
        """When the audio at `position` came (monotonic seconds); the nearest time that is known."""
        for end, when in self._arrivals:
            if end >= position:
                return when
        return self._arrivals[-1][1] if self._arrivals else time.monotonic()

    async def feed(self, data: bytes) -> None:
        """Takes audio in the stream's format. Waits, bounded, for an encoder that is slow."""
        # State changes only after the message is on its way, without a wait in between: a new
        # stream is made of the state and drops what is on its way, so nothing is sent twice.
        await self._send(_audio(data))
        start = self.position
        self._unanswered += 1
        self._frames += len(data) // self._frame_bytes
        chunk = _Chunk(start, self.position, data)
        self._chunks.append(chunk)
        self._arrivals.append((chunk.end, time.monotonic()))
        keep_from = self.position - round(KEEP_SECONDS * SAMPLE_RATE_HZ)
        while self._chunks and self._chunks[0].end < keep_from:
            self._chunks.popleft()

    def need_from(self, position: int) -> None:
        """Audio before `position` will not be asked for again."""
        self._needed_from = position

    async def transcribe(self, start: int, end: int) -> Transcript:
        """The words between two positions. UNAVAILABLE if no encoder can be had in time."""
        question_id, seconds = next(self._ids), (end - start) / SAMPLE_RATE_HZ
        span = tracing.begin("encoder.recognise", kind="client", seconds=seconds)
        question = _Question(start, end, span.traceparent)
        await self._send(_recognise(question_id, question))
        self._questions[question_id] = question
        try:
            return await asyncio.wait_for(asyncio.shield(question.answer), self._deadline)
        except TimeoutError:
            span.end(failure="UNAVAILABLE")
            raise unavailable(
                f"the encoder did not recognise {seconds:.1f} s of speech within "
                f"{self._deadline:g} s"
            ) from None
        finally:
            span.end()
            self._questions.pop(question_id, None)

    async def start_segment(self, start: int, *, probes: bool = False) -> int:
        """Asks for the speech embeddings from `start` on; returns the segment's id.

        Args:
            start: in samples at 16 kHz.
            probes: whether to ask for a `Probe` of each step, too.
        """
        await self.drop_segment()
        segment = _Segment(next(self._ids), max(start, 0), tracing.traceparent(), probes)
        await self._send(_start_embedding(segment))
        self._segment = segment
        return segment.segment_id

    async def end_segment(self, end: int) -> None:
        """Ends the segment: its last embeddings come, marked final."""
        segment = self._segment
        if segment is not None and segment.end is None:
            end = max(end, segment.start)
            await self._send(_end_embedding(segment, end))
            segment.end = end
            self._ended_segment = time.monotonic()

    async def drop_segment(self) -> None:
        """Drops the open segment, if there is one."""
        if self._segment is not None:
            segment = self._segment
            await self._send(_end_embedding(segment, segment.start, discard=True))
            self._segment = None

    async def run(self) -> None:
        """Keeps a stream to an encoder until cancelled. Ends after `Failed` was told."""
        while True:
            began = time.monotonic()
            status = await self._stream()
            if status.reason != DRAINING:
                metrics.count_hop_error("encoder", status.code)
            if status.code not in LOST:
                await self._give_up(status)
                return
            log.info("the encoder is left", reason=status.reason, error=str(status))
            if status.reason == DRAINING and self._progress > began:
                continue
            if not await self._outage.wait(str(status)):
                await self._give_up(
                    unavailable(f"no encoder answered within {self._deadline:g} s: {status}")
                )
                return

    async def _tell(self, problem: str) -> None:
        await self._on_heard(Lost(problem) if problem else Found())

    async def _give_up(self, error: StatusError) -> None:
        for question in self._questions.values():
            if not question.answer.done():
                question.answer.set_exception(error)
                question.answer.exception()  # marked as seen: nobody may be waiting any more
        await self._on_heard(Failed(error))

    async def _stream(self) -> StatusError:
        """Serves one stream to its end, and says why it ended."""
        # A stream that was lost may still wait for a message: it must not get one of this stream.
        before, self._outbox = self._outbox, asyncio.Queue(_FEED_LIMIT)
        while not before.empty():
            before.get_nowait()
        before.put_nowait(None)
        requests = self._requests(self._replay(), self._outbox)
        began = time.monotonic()
        call = self._stub.Encode(requests, metadata=call_metadata(self._session))
        try:
            async for response in _with_deadline(call, self._deadline, self._is_waiting):
                self._progress = time.monotonic()
                kind = response.WhichOneof("message")
                if kind == "ready":
                    metrics.HOP_ENCODER.labels("open").observe(self._progress - began)
                    await self._outage.over()
                elif kind == "activity":
                    self._time_frame(since=began)
                    self._heard_until = response.activity.end_sample
                    self._unanswered = max(0, self._unanswered - 1)
                    await self._on_heard(_activity(response.activity))
                    if not self._unanswered:
                        self._caught_up.set()
                elif kind == "transcript":
                    self._answered(response.transcript)
                elif kind == "embeddings":
                    await self._embedded(response.embeddings)
                elif kind == "probe":
                    await self._probed(response.probe)
        except grpc.RpcError as failure:
            return parse(failure)
        except StatusError as error:
            return error
        finally:
            call.cancel()
        return unavailable("the encoder ended the stream")

    def _time_frame(self, since: float) -> None:
        """Records how long the encoder took to answer to audio, if it came `since` then."""
        if 0 < self._unanswered <= len(self._arrivals):
            arrived = self._arrivals[-self._unanswered][1]
            if arrived >= since:
                _observe("frame", arrived)

    def _is_waiting(self) -> bool:
        """Whether an answer is due."""
        return self._unanswered > 0 or bool(self._questions)

    def _replay(self) -> list[encoder_pb2.EncodeRequest]:
        start = max(0, min(self._needed_from, self._heard_until) - samples(_PREROLL_MS))
        chunks = [chunk for chunk in self._chunks if chunk.end > start]
        if chunks and chunks[0].start > start:
            gone = chunks[0].start - start
            metrics.count_lost_input("too_old", gone / SAMPLE_RATE_HZ)
        self._unanswered = len(chunks)
        if not chunks:
            self._caught_up.set()
        config = encoder_pb2.EncodeConfig(
            format=self._format, start_sample=chunks[0].start if chunks else self.position
        )
        requests = [encoder_pb2.EncodeRequest(config=config)]
        requests += [_audio(chunk.data) for chunk in chunks]
        requests += [_recognise(key, question) for key, question in self._questions.items()]
        if self._segment is not None:
            if self._segment.start < config.start_sample:
                self._segment.go_on_from(config.start_sample)
            requests.append(_start_embedding(self._segment))
            if self._segment.end is not None:
                requests.append(_end_embedding(self._segment, self._segment.end))
        return requests

    async def _requests(
        self,
        replay: list[encoder_pb2.EncodeRequest],
        outbox: _Outbox,
    ) -> AsyncIterator[encoder_pb2.EncodeRequest]:
        sequence = itertools.count()
        for request in replay:
            if request.HasField("audio"):
                request.audio.sequence = next(sequence)
            yield request
        while (message := await outbox.get()) is not None:
            if message.HasField("audio"):
                message.audio.sequence = next(sequence)
            yield message

    async def _send(self, request: encoder_pb2.EncodeRequest) -> None:
        try:
            async with asyncio.timeout(self._deadline):
                sent = False
                while not sent:
                    outbox = self._outbox
                    await outbox.put(request)
                    # Otherwise a new stream has begun meanwhile, without it.
                    sent = outbox is self._outbox
        except TimeoutError:
            raise unavailable(f"the encoder took no audio for {self._deadline:g} s") from None

    def _answered(self, transcript: encoder_pb2.SegmentTranscript) -> None:
        question = self._questions.get(transcript.segment_id)
        if question is not None and not question.answer.done():
            _observe("transcript", question.asked)
            question.answer.set_result(
                Transcript(
                    transcript.start_sample,
                    transcript.end_sample,
                    transcript.text.strip(),
                    transcript.compute_ms,
                )
            )

    async def _embedded(self, part: encoder_pb2.SegmentEmbeddings) -> None:
        segment = self._segment
        if segment is None or part.segment_id != segment.segment_id:
            return
        # A new encoder begins the segment anew; what is known already is passed over.
        known = max(0, segment.received - part.first_index)
        matrix = _rows_from(part.embeddings, known)
        received = part.first_index + part.embeddings.rows
        if received >= segment.received:
            segment.received, segment.text = received, part.text.strip()
            segment.heard_until = max(segment.heard_until, part.end_sample)
        if part.final:
            _observe("embeddings", self._ended_segment)
            self._segment = None
        await self._on_heard(
            Embeddings(
                part.segment_id, matrix, segment.words, segment.heard_until, final=part.final
            )
        )

    async def _probed(self, probe: encoder_pb2.SegmentProbe) -> None:
        segment = self._segment
        if segment is None or probe.segment_id != segment.segment_id:
            return
        # A new encoder begins the segment anew; what it was asked already it is not asked again.
        if probe.end_sample > segment.probed_until:
            segment.probed_until = probe.end_sample
            await self._on_heard(Probe(probe.segment_id, probe.embedding, probe.end_sample))

    def _to_16k(self, frames: int) -> int:
        return round(frames * SAMPLE_RATE_HZ / self._format.sample_rate_hz)


async def _with_deadline(
    call: _Call, seconds: float, is_waiting: Callable[[], bool]
) -> AsyncIterator[encoder_pb2.EncodeResponse]:
    """The answers of a call; UNAVAILABLE when one is due and none comes for `seconds`."""
    while True:
        answer = asyncio.ensure_future(call.read())
        try:
            while not answer.done():
                waiting_before = is_waiting()
                done, _ = await asyncio.wait([answer], timeout=seconds)
                if not done and waiting_before and is_waiting():
                    raise unavailable(f"the encoder has not answered for {seconds:g} s")
        finally:
            if not answer.done():
                answer.cancel()
        response = answer.result()
        if not isinstance(response, encoder_pb2.EncodeResponse):
            status = await status_of(call)
            if status.code is not grpc.StatusCode.OK:
                raise status
            return
        yield response


def _observe(call: metrics.EncoderCall, asked: float) -> None:
    metrics.HOP_ENCODER.labels(call).observe(time.monotonic() - asked)


def _rows_from(matrix: common_pb2.FloatMatrix, first: int) -> common_pb2.FloatMatrix:
    first = min(first, matrix.rows)
    return common_pb2.FloatMatrix(
        data=matrix.data[first * matrix.columns * 4 :],
        rows=matrix.rows - first,
        columns=matrix.columns,
    )


def _activity(activity: encoder_pb2.VoiceActivity) -> Activity:
    return Activity(
        end=activity.end_sample,
        speaking=activity.speaking,
        speech_start=activity.speech_start_sample,
        speech_end=activity.speech_end_sample,
    )


def _audio(data: bytes) -> encoder_pb2.EncodeRequest:
    return encoder_pb2.EncodeRequest(audio=common_pb2.AudioChunk(data=data))


def _recognise(key: int, question: _Question) -> encoder_pb2.EncodeRequest:
    return encoder_pb2.EncodeRequest(
        recognize=encoder_pb2.Recognize(
            segment_id=key,
            start_sample=question.start,
            end_sample=question.end,
            traceparent=question.traceparent,
        )
    )


def _start_embedding(segment: _Segment) -> encoder_pb2.EncodeRequest:
    return encoder_pb2.EncodeRequest(
        start_embedding=encoder_pb2.StartEmbedding(
            segment_id=segment.segment_id,
            start_sample=segment.start,
            traceparent=segment.traceparent,
            probes=segment.probes,
        )
    )


def _end_embedding(
    segment: _Segment, end: int, *, discard: bool = False
) -> encoder_pb2.EncodeRequest:
    return encoder_pb2.EncodeRequest(
        end_embedding=encoder_pb2.EndEmbedding(
            segment_id=segment.segment_id, end_sample=end, discard=discard
        )
    )
