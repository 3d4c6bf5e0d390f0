"""The encoder as a real process, with real audio."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import httpx
import numpy as np
import psutil
import pytest

from minmo.audio.pcm import PcmFormat, Samples
from minmo.audio.resample import resample
from minmo.rpc.errors import StatusError, parse
from minmo.v1 import common_pb2, encoder_pb2
from minmo.v1.encoder_pb2_grpc import EncoderServiceStub
from tests.aligned import aligned_home, tokenizer
from tests.listening import recordings, weights_or_skip, word_error_rate

RATE = 16_000
F32 = common_pb2.AUDIO_ENCODING_PCM_F32LE
DEADLINE_SECONDS = 60.0
CONFIG_DEADLINE_SECONDS = 1.0
READ_DEADLINE_SECONDS = 1.0

Request = encoder_pb2.EncodeRequest


@dataclass(frozen=True)
class Encoder:
    """A running encoder."""

    process: psutil.Process
    address: str
    metrics_address: str

    async def metrics(self) -> str:
        """The page that Prometheus reads."""
        async with httpx.AsyncClient() as client:
            return (await client.get(f"http://{self.metrics_address}/metrics")).text

    async def has_no_streams(self) -> bool:
        """Whether all streams have ended."""
        return await self.metric("minmo_streams") == 0

    async def metric(self, name: str) -> float:
        """The value of a metric without labels."""
        page = await self.metrics()
        return float(
            next(line.split()[1] for line in page.splitlines() if line.startswith(f"{name} "))
        )


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encoder]:
    with running(tmp_path_factory.mktemp("encoder"), "--drain-seconds", "1") as encoder:
        yield encoder


@contextmanager
def running(folder: Path, *flags: str) -> Iterator[Encoder]:
    """An encoder of its own, which ends well."""
    weights_or_skip("vad")
    # What recognises words is loaded when the first test asks for it.
    environment = os.environ | {"MINMO_HOME": str(aligned_home(folder / "home"))}
    ready = folder / "ready.json"
    command = [
        *(sys.executable, "-m", "services.encoder", "--ready-file", str(ready)),
        *("--log-level", "warning", "--preload", "embeddings", *flags),
        *("--config-deadline-seconds", str(CONFIG_DEADLINE_SECONDS)),
        *("--read-deadline-seconds", str(READ_DEADLINE_SECONDS)),
    ]
    with subprocess.Popen(command, env=environment) as process:
        try:
            yield wait_ready(process, ready)
        finally:
            if process.poll() is None:
                process.terminate()
            assert process.wait(20) == 0


def wait_ready(process: subprocess.Popen[bytes], ready: Path) -> Encoder:
    give_up = time.monotonic() + 60
    while not ready.exists():
        assert process.poll() is None, "the encoder ended while it started"
        assert time.monotonic() < give_up, "the encoder was not ready within 60 s"
        time.sleep(0.05)
    report = json.loads(ready.read_text())
    return Encoder(psutil.Process(process.pid), report["address"], report["metrics_address"])


@pytest.fixture
async def stub(encoder: Encoder) -> AsyncIterator[EncoderServiceStub]:
    async with grpc.aio.insecure_channel(encoder.address) as channel:
        yield EncoderServiceStub(channel)


@dataclass
class Heard:
    """What a stream answered."""

    ready: encoder_pb2.EncodeReady = field(default_factory=encoder_pb2.EncodeReady)
    activities: list[encoder_pb2.VoiceActivity] = field(default_factory=list)
    embeddings: list[encoder_pb2.SegmentEmbeddings] = field(default_factory=list)
    transcripts: list[encoder_pb2.SegmentTranscript] = field(default_factory=list)
    probes: list[encoder_pb2.SegmentProbe] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)

    def add(self, response: encoder_pb2.EncodeResponse) -> None:
        kind = response.WhichOneof("message")
        assert kind is not None
        self.kinds.append(kind)
        match kind:
            case "ready":
                self.ready = response.ready
            case "activity":
                self.activities.append(response.activity)
            case "embeddings":
                self.embeddings.append(response.embeddings)
            case "transcript":
                self.transcripts.append(response.transcript)
            case "probe":
                # What was heard up to the step's end came before it.
                assert self.kinds[-2] in ("embeddings", "probe")
                self.probes.append(response.probe)

    @property
    def pieces(self) -> list[int]:
        """The pieces of all embeddings."""
        return [piece for part in self.embeddings for piece in part.pieces]

    @property
    def matrix(self) -> np.ndarray:
        """All embeddings, `[embeddings, width]`; checks that they come without gaps."""
        rows = []
        for part in self.embeddings:
            assert part.first_index == sum(len(piece) for piece in rows)
            shape = (part.embeddings.rows, part.embeddings.columns)
            rows.append(np.frombuffer(part.embeddings.data, "<f4").reshape(shape))
        return np.concatenate(rows)


def config(pcm: PcmFormat | None = None, start_sample: int = 0) -> Request:
    audio_format = (pcm or PcmFormat(RATE)).to_proto()
    return Request(config=encoder_pb2.EncodeConfig(format=audio_format, start_sample=start_sample))


def audio(samples: Samples, pcm: PcmFormat | None = None, milliseconds: int = 20) -> list[Request]:
    """Chunks of `[samples]`, which are at the format's rate."""
    pcm = pcm or PcmFormat(RATE)
    size = pcm.sample_rate_hz * milliseconds // 1000
    return [
        chunk(number, pcm.encode(samples[start : start + size]))
        for number, start in enumerate(range(0, len(samples), size))
    ]


def chunk(sequence: int, data: bytes) -> Request:
    return Request(audio=common_pb2.AudioChunk(sequence=sequence, data=data))


def recognize(start: int, end: int, segment_id: int = 1) -> Request:
    return Request(
        recognize=encoder_pb2.Recognize(segment_id=segment_id, start_sample=start, end_sample=end)
    )


def start_embedding(start: int, segment_id: int = 1, *, probes: bool = False) -> Request:
    return Request(
        start_embedding=encoder_pb2.StartEmbedding(
            segment_id=segment_id, start_sample=start, probes=probes
        )
    )


def end_embedding(end: int, segment_id: int = 1, *, discard: bool = False) -> Request:
    return Request(
        end_embedding=encoder_pb2.EndEmbedding(
            segment_id=segment_id, end_sample=end, discard=discard
        )
    )


async def hear(stub: EncoderServiceStub, requests: Sequence[Request]) -> Heard:
    """Sends the requests as fast as they are taken, and half-closes."""
    heard = Heard()

    async def send() -> AsyncIterator[Request]:
        for request in requests:
            yield request

    async for response in stub.Encode(send(), timeout=DEADLINE_SECONDS):
        heard.add(response)
    return heard


async def probed(stub: EncoderServiceStub, requests: Sequence[Request], count: int) -> Heard:
    """Sends the requests, and leaves when so many probes have come."""
    heard = Heard()

    async def send() -> AsyncIterator[Request]:
        for request in requests:
            yield request
        await asyncio.Event().wait()  # the segment stays open

    call = stub.Encode(send(), timeout=DEADLINE_SECONDS)
    async for response in call:
        heard.add(response)
        if len(heard.probes) == count:
            call.cancel()
            break
    return heard


async def refusal(stub: EncoderServiceStub, requests: Sequence[Request]) -> StatusError:
    """The status that ends a stream of these requests."""

    async def send() -> AsyncIterator[Request]:
        for request in requests:
            yield request
        if requests:  # half-closing at the same moment would be a race
            await asyncio.Event().wait()

    with pytest.raises(grpc.aio.AioRpcError) as raised:
        async for _ in stub.Encode(send(), timeout=DEADLINE_SECONDS):
            pass
    return parse(raised.value)


async def transcript(
    stub: EncoderServiceStub, samples: Samples, pcm: PcmFormat | None = None
) -> str:
    """The words of a whole clip, which is at the format's rate."""
    pcm = pcm or PcmFormat(RATE)
    end = round(len(samples) * RATE / pcm.sample_rate_hz)
    heard = await hear(stub, [config(pcm), *audio(samples, pcm), recognize(0, end)])
    assert len(heard.transcripts) == 1
    return heard.transcripts[0].text


def noise(seconds: float, level: float = 0.1) -> Samples:
    return np.random.default_rng(0).normal(scale=level, size=int(seconds * RATE)).astype(np.float32)


CLIPS = recordings()


async def test_real_speech_is_recognised(stub: EncoderServiceStub) -> None:
    found = [await transcript(stub, clip.samples) for clip in CLIPS]
    assert word_error_rate([clip.text for clip in CLIPS], found) < 0.1


@pytest.mark.parametrize(
    "pcm",
    [
        PcmFormat(8000),
        PcmFormat(11025),
        PcmFormat(12000, 1, F32),
        PcmFormat(22050),
        PcmFormat(24000),
        PcmFormat(32000),
        PcmFormat(44100, 2),
        PcmFormat(48000, 2, F32),
    ],
    ids=lambda pcm: f"{pcm.sample_rate_hz}x{pcm.channels}",
)
async def test_speech_is_recognised_in_every_format(
    stub: EncoderServiceStub, pcm: PcmFormat
) -> None:
    clips = [CLIPS[0], CLIPS[-1]]
    found = [
        await transcript(stub, resample(clip.samples, RATE, pcm.sample_rate_hz), pcm)
        for clip in clips
    ]
    assert word_error_rate([clip.text for clip in clips], found) <= 0.15


async def test_ready_comes_first_then_one_activity_for_every_chunk_in_order(
    stub: EncoderServiceStub,
) -> None:
    chunks = audio(CLIPS[0].samples)
    heard = await hear(stub, [config(), *chunks])
    assert heard.kinds == ["ready", *["activity"] * len(chunks)]
    assert heard.ready.embedding_width == 576
    assert heard.ready.samples_per_embedding == 0  # they are merged
    ends = [activity.end_sample for activity in heard.activities]
    assert ends == [*range(320, len(CLIPS[0].samples), 320), len(CLIPS[0].samples)]


async def test_activity_says_where_speech_is(stub: EncoderServiceStub) -> None:
    silence = np.zeros(RATE, np.float32)
    clip = CLIPS[0].samples
    heard = await hear(stub, [config(), *audio(np.concatenate((silence, clip, silence)))])
    first = next(activity for activity in heard.activities if activity.speaking)
    last = heard.activities[-1]
    assert RATE <= first.speech_start_sample < RATE + 8000
    assert not last.speaking
    assert RATE + len(clip) - 8000 < last.speech_end_sample <= RATE + len(clip) + 1024


async def test_a_stream_that_takes_over_counts_on_from_where_the_other_was(
    stub: EncoderServiceStub,
) -> None:
    clip, start = CLIPS[0].samples, 5_000_000
    heard = await hear(
        stub, [config(start_sample=start), *audio(clip), recognize(start, start + len(clip))]
    )
    assert heard.activities[-1].end_sample == start + len(clip)
    assert heard.activities[-1].speech_start_sample > start
    assert word_error_rate([CLIPS[0].text], [heard.transcripts[0].text]) < 0.2


async def test_an_empty_chunk_is_answered_too(stub: EncoderServiceStub) -> None:
    heard = await hear(stub, [config(), chunk(0, b""), chunk(1, bytes(640))])
    assert [activity.end_sample for activity in heard.activities] == [0, 320]


async def test_embeddings_and_their_words_do_not_depend_on_how_the_audio_is_cut(
    stub: EncoderServiceStub,
) -> None:
    clip = CLIPS[0].samples
    start, end = 600, len(clip) - 500
    results = []
    for milliseconds in (20, 50, 900):
        chunks = audio(clip, milliseconds=milliseconds)
        requests = [config(), *chunks[:2], start_embedding(start), *chunks[2:], end_embedding(end)]
        results.append(await hear(stub, requests))
    first, spell = results[0], tokenizer()
    assert 10 < len(first.matrix) < (end - start) / 768
    for heard in results:
        parts = heard.embeddings
        assert [part.final for part in parts] == [*[False] * (len(parts) - 1), True]
        assert parts[-1].end_sample == end
        ends = [part.end_sample for part in parts[:-1]]
        assert ends == sorted(ends)
        assert (ends[0], (ends[-1] - start) % 768) >= (start, 0)
        # One row a piece, and the text is what all the pieces so far spell.
        pieces: list[int] = []
        for part in parts:
            assert len(part.pieces) == part.embeddings.rows
            pieces += part.pieces
            assert part.text == spell.decode(pieces)
        assert heard.pieces == first.pieces
    # Where the end is known before its audio was listened to, nothing else can differ either.
    np.testing.assert_array_equal(results[1].matrix, first.matrix)
    assert first.matrix.std() > 0


async def test_embeddings_come_while_the_speech_goes_on(stub: EncoderServiceStub) -> None:
    call = stub.Encode(timeout=DEADLINE_SECONDS)
    heard = Heard()
    await call.write(config())
    await call.write(start_embedding(0))
    chunks = audio(CLIPS[0].samples)
    for request in chunks:
        await call.write(request)
    while not heard.embeddings or heard.embeddings[-1].end_sample < len(CLIPS[0].samples) / 2:
        response = await call.read()
        assert isinstance(response, encoder_pb2.EncodeResponse)
        heard.add(response)
    assert len(heard.matrix) > 5
    assert heard.ready.look_ahead_samples == 4608 + 511
    call.cancel()


async def test_each_step_is_probed_where_it_is_asked_for_also_in_silence(
    stub: EncoderServiceStub,
) -> None:
    clip = np.concatenate((CLIPS[0].samples[:20_000], np.zeros(20_000, np.float32)))
    start = 300
    results = []
    for milliseconds in (20, 900):
        first, *others = audio(clip, milliseconds=milliseconds)
        requests = [config(), first, start_embedding(start, probes=True), *others]
        count = (len(clip) - start - 511) // 4608 * 2
        results.append(await probed(stub, requests, count))
    first, second = results
    steps = range(len(first.probes))
    assert [probe.end_sample for probe in first.probes] == [start + 2304 * (n + 1) for n in steps]
    assert [probe.step for probe in first.probes] == list(steps)
    rows = [np.frombuffer(probe.embedding.data, "<f4") for probe in first.probes]
    assert all(row.shape == (576,) for row in rows)
    again = [np.frombuffer(probe.embedding.data, "<f4") for probe in second.probes]
    np.testing.assert_array_equal(rows, again)
    # About as large as the rows of the LLM's embedding table.
    assert np.sqrt(np.mean(np.square(rows))) == pytest.approx(0.136, rel=0.5)
    quiet = await hear(stub, [config(), start_embedding(0), *audio(clip)])
    assert quiet.probes == []


async def test_an_encoder_that_takes_over_gives_the_same_embeddings(
    stub: EncoderServiceStub,
) -> None:
    """The audio from a little before the segment comes again at once, at the same positions."""
    clip, start = CLIPS[1].samples, 10_240
    chunks = audio(clip)
    requests = [config(), *chunks[:40], start_embedding(start), *chunks[40:]]
    first = await hear(stub, [*requests, end_embedding(len(clip))])
    again = audio(clip[6400:])
    second = await hear(
        stub,
        [config(start_sample=6400), *again, start_embedding(start), end_embedding(len(clip))],
    )
    assert second.pieces == first.pieces
    np.testing.assert_array_equal(second.matrix, first.matrix)
    assert second.embeddings[-1].text == first.embeddings[-1].text


async def test_a_discarded_segment_has_no_end_and_another_may_start(
    stub: EncoderServiceStub,
) -> None:
    chunks = audio(CLIPS[0].samples)
    requests = [
        *(config(), *chunks[:10], start_embedding(0, 1), *chunks[10:40]),
        *(end_embedding(0, 1, discard=True), start_embedding(0, 2), *chunks[40:]),
        *(
            end_embedding(12_000, 2),
            end_embedding(0, 2, discard=True),
            end_embedding(0, 9, discard=True),
        ),
    ]
    heard = await hear(stub, requests)
    assert not any(part.final for part in heard.embeddings if part.segment_id == 1)


async def test_half_closing_ends_the_open_segment(stub: EncoderServiceStub) -> None:
    clip = CLIPS[0].samples
    heard = await hear(stub, [config(), start_embedding(0), *audio(clip)])
    assert heard.embeddings[-1].final
    assert heard.embeddings[-1].end_sample == len(clip)
    assert len(heard.matrix) > 5


def odd(message: Request) -> Request:
    message.audio.data += b"\0"
    return message


BAD_STREAMS = {
    "it is empty": ([], "INVALID_ARGUMENT", "config"),
    "audio comes before its settings": ([chunk(0, bytes(640))], "INVALID_ARGUMENT", "config"),
    "the first message is empty": ([Request()], "INVALID_ARGUMENT", "config"),
    "a later message is empty": ([config(), Request()], "INVALID_ARGUMENT", "message"),
    "it has two settings": ([config(), config()], "INVALID_ARGUMENT", "1 per stream"),
    "its encoding is not set": (
        [
            Request(
                config=encoder_pb2.EncodeConfig(
                    format=common_pb2.AudioFormat(sample_rate_hz=8000, channels=1)
                )
            )
        ],
        "INVALID_ARGUMENT",
        "config.format.encoding",
    ),
    "its rate is unknown": (
        [
            Request(
                config=encoder_pb2.EncodeConfig(
                    format=common_pb2.AudioFormat(encoding=1, sample_rate_hz=7999, channels=1)
                )
            )
        ],
        "INVALID_ARGUMENT",
        "config.format.sample_rate_hz: 7999",
    ),
    "it has six channels": (
        [
            Request(
                config=encoder_pb2.EncodeConfig(
                    format=common_pb2.AudioFormat(encoding=1, sample_rate_hz=8000, channels=6)
                )
            )
        ],
        "INVALID_ARGUMENT",
        "config.format.channels: 6",
    ),
    "a chunk ends within a sample": (
        [config(), odd(chunk(0, bytes(640)))],
        "INVALID_ARGUMENT",
        "multiple of 2 bytes",
    ),
    "a sample is no number": (
        [config(PcmFormat(RATE, 1, F32)), chunk(0, np.full(160, np.nan, "<f4").tobytes())],
        "INVALID_ARGUMENT",
        "finite number",
    ),
    "a chunk is missing": (
        [config(), chunk(0, bytes(640)), chunk(2, bytes(640))],
        "INVALID_ARGUMENT",
        "audio.sequence: it is 2 where 1 was due",
    ),
    "a chunk comes twice": (
        [config(), chunk(0, bytes(640)), chunk(0, bytes(640))],
        "INVALID_ARGUMENT",
        "audio.sequence: it is 0 where 1 was due",
    ),
    "a chunk has too many bytes": (
        [config(PcmFormat(48000, 2, F32)), chunk(0, bytes(1024 * 1024 + 8))],
        "INVALID_ARGUMENT",
        "1048584 bytes are too many",
    ),
    "a chunk lasts too long": (
        [config(PcmFormat(8000)), chunk(0, bytes(2 * 8000 * 6))],
        "INVALID_ARGUMENT",
        "6.0 s are too long",
    ),
    "it asks for nothing": (
        [config(), chunk(0, bytes(6400)), recognize(100, 100)],
        "INVALID_ARGUMENT",
        "recognize.end_sample: 100 is not behind",
    ),
    "it asks for too much at once": (
        [config(), chunk(0, bytes(6400)), recognize(0, 31 * RATE)],
        "INVALID_ARGUMENT",
        "31.0 s are too long",
    ),
    "it asks for words before it began": (
        [config(start_sample=RATE), chunk(0, bytes(6400)), recognize(0, RATE + 100)],
        "OUT_OF_RANGE",
        "the stream holds samples 16000 to 19200",
    ),
    "it asks for words to come": (
        [config(), chunk(0, bytes(6400)), recognize(0, 4000)],
        "OUT_OF_RANGE",
        "sample 4000 has not been sent: the stream holds samples 0 to 3200",
    ),
    "it starts a segment to come": (
        [config(), chunk(0, bytes(6400)), start_embedding(4000)],
        "OUT_OF_RANGE",
        "start_embedding.start_sample: sample 4000 has not been sent",
    ),
    "it starts a segment while one is open": (
        [config(), chunk(0, bytes(6400)), start_embedding(0, 1), start_embedding(0, 2)],
        "FAILED_PRECONDITION",
        "segment 1 is open",
    ),
    "it ends a segment that is not open": (
        [config(), chunk(0, bytes(6400)), end_embedding(100, 7)],
        "FAILED_PRECONDITION",
        "segment 7 cannot end: none is open",
    ),
    "it ends a segment before its start": (
        [config(), chunk(0, bytes(6400)), start_embedding(500), end_embedding(400)],
        "INVALID_ARGUMENT",
        "400 is before the segment's start, 500",
    ),
}


@pytest.mark.parametrize("case", BAD_STREAMS)
async def test_a_bad_stream_is_refused_with_the_reason(stub: EncoderServiceStub, case: str) -> None:
    requests, code, reason = BAD_STREAMS[case]
    status = await refusal(stub, requests)
    assert status.code.name == code
    assert reason in f"{status.message} {status.metadata}"


async def test_a_stream_that_sends_no_settings_is_ended(stub: EncoderServiceStub) -> None:
    call = stub.Encode(timeout=DEADLINE_SECONDS)
    began = time.monotonic()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call.wait_for_connection()
        await call.read()
    status = parse(raised.value)
    assert status.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "send `config` first" in status.message
    assert time.monotonic() - began < CONFIG_DEADLINE_SECONDS + 5


async def test_audio_that_left_the_buffer_is_refused_with_what_is_held(
    stub: EncoderServiceStub,
) -> None:
    minute = audio(np.zeros(61 * RATE, np.float32), milliseconds=1000)
    status = await refusal(stub, [config(), *minute, recognize(0, RATE)])
    assert status.code is grpc.StatusCode.OUT_OF_RANGE
    assert status.metadata["held_start_sample"] == str(RATE)
    assert status.metadata["held_end_sample"] == str(61 * RATE)


@pytest.mark.parametrize(
    "sound",
    [
        np.zeros(3 * RATE, np.float32),
        noise(3),
        np.clip(noise(3, 10), -1, 1),
        np.ones(3 * RATE, np.float32),
    ],
    ids=["silence", "white noise", "clipped noise", "a constant"],
)
async def test_what_is_no_speech_has_no_words(stub: EncoderServiceStub, sound: Samples) -> None:
    heard = await hear(stub, [config(), *audio(sound), recognize(0, len(sound))])
    assert heard.transcripts[0].text == ""
    assert heard.transcripts[0].compute_ms == 0  # nobody looked for any
    assert heard.activities[-1].speech_end_sample == 0


async def test_clipped_speech_is_still_recognised(stub: EncoderServiceStub) -> None:
    clip = CLIPS[0]
    text = await transcript(stub, np.clip(30 * clip.samples, -1, 1))
    assert word_error_rate([clip.text], [text]) < 0.5


async def test_the_tail_of_a_clip_at_a_low_rate_is_not_lost(stub: EncoderServiceStub) -> None:
    """The resampler from 8 kHz holds back 0.1 s; the words of a cut clip end there."""
    clip = CLIPS[0]
    speech_end = len(clip.samples) - int(np.argmax(np.abs(clip.samples[::-1]) > 0.05))
    low = resample(clip.samples[:speech_end], RATE, 8000)
    text = await transcript(stub, low, PcmFormat(8000))
    assert word_error_rate([clip.text], [text]) < 0.2


async def test_six_minutes_faster_than_real_time_take_no_more_memory(
    encoder: Encoder, stub: EncoderServiceStub
) -> None:
    minute = np.resize(np.concatenate([clip.samples for clip in CLIPS]), 60 * RATE)
    await hear(stub, [config(), *audio(minute, milliseconds=100), recognize(40 * RATE, 60 * RATE)])
    before = encoder.process.memory_info().rss
    began = time.monotonic()
    requests = audio(np.tile(minute, 6), milliseconds=100)
    heard = await hear(stub, [config(), *requests, recognize(340 * RATE, 360 * RATE)])
    assert len(heard.activities) == len(requests)
    assert heard.transcripts[0].text
    assert time.monotonic() - began < 0.25 * 360
    assert encoder.process.memory_info().rss - before < 30 * 1024**2


async def test_voice_activity_does_not_wait_for_a_recognition(stub: EncoderServiceStub) -> None:
    speech = np.resize(np.concatenate([clip.samples for clip in CLIPS]), 29 * RATE)
    chunks = audio(np.concatenate((speech, speech[: 2 * RATE])))
    first, later = chunks[: 29 * 50], chunks[29 * 50 :]
    heard = await hear(stub, [config(), *first, recognize(0, len(speech)), *later])
    assert heard.kinds.index("transcript") > heard.kinds.index("activity") + len(first) + 20
    assert heard.transcripts[0].compute_ms > 0


async def test_streams_at_the_same_time_do_not_mix(stub: EncoderServiceStub) -> None:
    found = await asyncio.gather(*(transcript(stub, clip.samples) for clip in CLIPS))
    assert word_error_rate([clip.text for clip in CLIPS], list(found)) < 0.1


async def until(condition: object, seconds: float = 20) -> None:
    """Waits for an asynchronous condition."""
    async with asyncio.timeout(seconds):
        while not await condition():  # type: ignore[operator]
            await asyncio.sleep(0.02)


async def test_what_a_vanished_client_asked_for_is_not_computed(
    encoder: Encoder, stub: EncoderServiceStub
) -> None:
    speech = np.resize(np.concatenate([clip.samples for clip in CLIPS]), 20 * RATE)
    done = 'minmo_encoder_job_duration_seconds_count{kind="recognise"}'
    before = await encoder.metric(done)
    async with grpc.aio.insecure_channel(encoder.address) as channel:
        call = EncoderServiceStub(channel).Encode(timeout=DEADLINE_SECONDS)
        for request in [config(), *audio(speech, milliseconds=500)]:
            await call.write(request)
        for segment_id in range(12):
            await call.write(recognize(0, len(speech), segment_id))

        async def queued() -> bool:
            return await encoder.metric("minmo_encoder_waiting") > 5

        await until(queued)
    # The channel is closed: the client is gone.
    await until(encoder.has_no_streams)
    assert (await transcript(stub, CLIPS[0].samples)) != ""
    assert await encoder.metric("minmo_encoder_waiting") == 0
    # The one that was asked for after it, and those that had begun already.
    assert await encoder.metric(done) - before < 8


async def test_a_client_that_does_not_read_is_ended_and_disturbs_nobody(
    encoder: Encoder, stub: EncoderServiceStub
) -> None:
    # Without this option the client's library reads megabytes ahead, on its own.
    options = [("grpc.http2.bdp_probe", 0)]
    async with grpc.aio.insecure_channel(encoder.address, options) as channel:
        call = EncoderServiceStub(channel).Encode(timeout=DEADLINE_SECONDS)

        async def only_write() -> None:
            await call.write(config())
            number = 0
            while True:
                await call.write(chunk(number, bytes(2)))
                number += 1

        writing = asyncio.create_task(only_write())
        assert await transcript(stub, CLIPS[0].samples) != ""
        assert await encoder.metric("minmo_streams") == 1
        await until(encoder.has_no_streams)
        writing.cancel()
    page = await encoder.metrics()
    assert (
        'minmo_rpc_handled_total{code="RESOURCE_EXHAUSTED",method="/minmo.v1.EncoderService/Encode"}'
        in page
    )


async def test_too_many_questions_at_once_are_refused(stub: EncoderServiceStub) -> None:
    speech = np.resize(CLIPS[0].samples, 10 * RATE)
    questions = [recognize(0, len(speech), number) for number in range(40)]
    status = await refusal(stub, [config(), *audio(speech), *questions])
    assert status.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert status.metadata["limit"] == "16 requests"


class Stream:
    """A stream that is open, and is sent silence and speech as it comes."""

    def __init__(self, stub: EncoderServiceStub) -> None:
        self.call = stub.Encode(timeout=DEADLINE_SECONDS)
        self._sequence = 0

    async def say(self, samples: Samples) -> encoder_pb2.VoiceActivity:
        """The activity at the end of what is said."""
        activity = encoder_pb2.VoiceActivity()
        if not self._sequence:
            await self.call.write(config())
            assert (await self.call.read()).HasField("ready")
        for request in audio(samples):
            request.audio.sequence, self._sequence = self._sequence, self._sequence + 1
            await self.call.write(request)
            activity = (await self.call.read()).activity
        return activity

    async def send_away(self) -> StatusError:
        """How the process ends the stream, within a second."""
        async with asyncio.timeout(1):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await self.call.read()
        return parse(raised.value)


async def test_an_encoder_that_stops_ends_its_streams_between_segments(tmp_path: Path) -> None:
    words = CLIPS[0].samples
    silence = np.zeros(RATE // 2, np.float32)
    with running(tmp_path, "--drain-seconds", "20") as encoder:
        async with grpc.aio.insecure_channel(encoder.address) as channel:
            stub: EncoderServiceStub = EncoderServiceStub(channel)
            silent, speaking, embedding = (Stream(stub) for _ in range(3))
            await embedding.say(silence)
            await embedding.call.write(start_embedding(0))
            # Nothing answers that; by the time these are answered it has long arrived.
            assert not (await silent.say(silence)).speaking
            assert (await speaking.say(words[: RATE // 2])).speaking or (
                await speaking.say(words[RATE // 2 : RATE])
            ).speaking
            encoder.process.terminate()
            assert (await silent.send_away()).reason == "DRAINING"
            # Who speaks is heard to the end, and a second further.
            await speaking.say(words[RATE:])
            await speaking.say(silence)
            with pytest.raises((grpc.RpcError, asyncio.InvalidStateError)):
                await speaking.say(np.concatenate([silence] * 3))
            # gRPC hides the reason from who is writing at that moment.
            assert (await speaking.send_away()).code is grpc.StatusCode.UNAVAILABLE
            await embedding.call.write(end_embedding(RATE // 2))
            while not (await embedding.call.read()).embeddings.final:
                pass
            assert (await embedding.send_away()).reason == "DRAINING"
        await asyncio.to_thread(encoder.process.wait, 20)
