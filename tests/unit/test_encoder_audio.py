"""What an encoder stream keeps of its audio, and what it makes of a segment."""

from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from minmo.audio.pcm import PcmFormat, Samples
from minmo.audio.resample import resample
from minmo.audio.vad import VadThresholds
from minmo.engine.finding_pieces import Heard
from minmo.engine.listening import Probe, Schedule
from minmo.rpc.errors import StatusError
from minmo.rpc.health import Readiness
from minmo.settings import EncoderSettings
from minmo.v1 import encoder_pb2
from services.encoder.audio_buffer import AudioBuffer
from services.encoder.compute import ComputeQueue
from services.encoder.intake import AudioIntake
from services.encoder.segment import Segment
from services.encoder.stream import EncodeStream


@pytest.mark.parametrize("size", [1, 7, 10, 11, 100])
def test_the_buffer_holds_the_latest_samples_at_their_positions(size: int) -> None:
    buffer = AudioBuffer(10, start_sample=1000)
    ramp = np.arange(1000, 1100, dtype=np.float32)
    for start in range(0, 100, size):
        buffer.append(ramp[start : start + size])
        held = buffer.read(buffer.start, buffer.end)
        np.testing.assert_array_equal(held, np.arange(buffer.start, buffer.end))
    assert (buffer.start, buffer.end) == (1090, 1100)
    assert buffer.read(1093, 1095).tolist() == [1093, 1094]
    assert buffer.read(1095, 1095).tolist() == []


@pytest.mark.parametrize(("start", "end"), [(1089, 1095), (1095, 1101), (1096, 1095)])
def test_the_buffer_gives_nothing_that_it_does_not_hold(start: int, end: int) -> None:
    buffer = AudioBuffer(10, start_sample=1000)
    buffer.append(np.zeros(100, np.float32))
    with pytest.raises(IndexError, match="not within 1090 to 1100"):
        buffer.read(start, end)


def intake_of(rate: int, start_sample: int = 0) -> AudioIntake:
    return AudioIntake(
        PcmFormat(rate),
        start_sample,
        lambda frame: float(np.abs(frame).max() > 0.1),
        VadThresholds(),
        buffer_seconds=2,
    )


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_audio_that_the_resampler_still_holds_can_be_read(rate: int) -> None:
    sound = np.random.default_rng(0).normal(scale=0.1, size=rate).astype(np.float32)
    pcm = PcmFormat(rate)
    intake = intake_of(rate, start_sample=500)
    intake.hear(pcm.encode(sound))
    assert intake.sent_end == 16500
    heard = intake.read(500, 16500)
    expected = resample(pcm.decode(pcm.encode(sound)), rate, 16000)
    np.testing.assert_allclose(heard, expected, atol=1e-4)
    assert intake.read(16400, 16516)[-16:].tolist() == [0] * 16


def test_only_stretches_without_any_speech_are_silent() -> None:
    intake = intake_of(16000)
    pcm = PcmFormat(16000)
    intake.hear(pcm.encode(np.zeros(8192, np.float32)))
    intake.hear(pcm.encode(np.full(8192, 0.5, np.float32)))
    assert intake.is_silent(0, 8000)
    assert not intake.is_silent(0, 9000)


async def test_a_preset_that_was_not_taught_to_listen_refuses_embeddings_with_the_reason() -> None:
    models = SimpleNamespace(
        schedule=None,
        width=0,
        why_none="train it first",
        vad=SimpleNamespace(stream=lambda: lambda samples: np.zeros(len(samples) // 512)),
    )
    compute, listening = ComputeQueue(1, 1), ThreadPoolExecutor(1)
    stream = EncodeStream(
        EncoderSettings(),
        models,  # type: ignore[arg-type]
        compute,
        listening,
        Readiness(),
    )

    async def requests() -> AsyncIterator[encoder_pb2.EncodeRequest]:
        config = encoder_pb2.EncodeConfig(format=PcmFormat(16000).to_proto())
        yield encoder_pb2.EncodeRequest(config=config)
        start = encoder_pb2.StartEmbedding(segment_id=1)
        yield encoder_pb2.EncodeRequest(start_embedding=start)

    answers = stream.serve(requests())
    ready = (await anext(answers)).ready
    assert (ready.embedding_width, ready.look_ahead_samples) == (0, 0)
    with pytest.raises(StatusError, match="train it first") as refused:
        await anext(answers)
    assert (refused.value.code.name, refused.value.reason) == (
        "FAILED_PRECONDITION",
        "NOT_TRAINED",
    )
    listening.shutdown()


class CountingEmbedder:
    """Hears one piece in each block of 768 samples, once 100 more are there."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.finished: int | None = None
        self.pieces = 0

    @property
    def samples(self) -> int:
        return sum(self.taken)

    @property
    def settled(self) -> int:
        return 768 * self.pieces

    def process(self, chunk: Samples) -> Heard:
        self.taken.append(len(chunk))
        return self._up_to(SCHEDULE.blocks(self.samples))

    def take_probes(self) -> list[Probe]:
        return [Probe(torch.zeros(1, 4), step) for step in (0, 1)]

    def finish(self, samples: int) -> Heard:
        self.finished = samples
        return self._up_to(-(-samples // 768))

    def _up_to(self, number: int) -> Heard:
        new = list(range(self.pieces, max(self.pieces, number)))
        self.pieces += len(new)
        return Heard(torch.ones(len(new), 4), new, new)


SCHEDULE = Schedule(unit=768, step=768, look_ahead=100)


def segment_of(start: int) -> tuple[Segment, CountingEmbedder]:
    embedder = CountingEmbedder()
    text = "abcdefghij"

    def to_text(tokens: Sequence[int]) -> str:
        return "".join(text[token] for token in tokens)

    return Segment(3, start, lambda: embedder, SCHEDULE, to_text), embedder


def work(segment: Segment) -> list[encoder_pb2.SegmentEmbeddings]:
    """The answers of all the work that there is."""
    answers = []
    while segment.has_work:
        made = segment.next_job()()
        answers += [
            answer.embeddings
            for answer in segment.answers(made, final=segment.is_complete)
            if answer.HasField("embeddings")
        ]
    return answers


def test_probes_follow_the_pieces_until_the_segment_is_to_end() -> None:
    segment, _ = segment_of(1000)
    segment.add(np.zeros(4 * 768 + 100, np.float32))
    made = segment.next_job()()
    embeddings, first, second = segment.answers(made, final=False)
    assert embeddings.embeddings.embeddings.rows == 4
    ends = [probe.probe.end_sample for probe in (first, second)]
    assert ends == [1000 + 3 * 768, 1000 + 6 * 768]
    assert [probe.probe.step for probe in (first, second)] == [0, 1]
    assert first.probe.segment_id == 3
    assert (first.probe.embedding.rows, first.probe.embedding.columns) == (1, 4)
    segment.end_at(1000 + 4 * 768 + 100)
    made = segment.next_job()()
    assert len(made.probes) == 2
    (last,) = segment.answers(made, final=segment.is_complete)
    assert last.embeddings.final


def test_a_segment_works_in_blocks_and_says_what_is_heard_in_them() -> None:
    segment, embedder = segment_of(1000)
    segment.add(np.zeros(867, np.float32))
    assert not segment.has_work
    segment.add(np.zeros(7 * 768 - 767, np.float32))
    answers = work(segment)
    assert embedder.taken == [4 * 768 + 100, 3 * 768]
    assert [(answer.first_index, answer.embeddings.rows) for answer in answers] == [(0, 4), (4, 3)]
    assert [list(answer.pieces) for answer in answers] == [[0, 1, 2, 3], [4, 5, 6]]
    assert [answer.text for answer in answers] == ["abcd", "abcdefg"]
    assert [answer.end_sample for answer in answers] == [1000 + 4 * 768, 1000 + 7 * 768]
    assert not any(answer.final for answer in answers)
    assert len(answers[0].embeddings.data) == 4 * 4 * 4


def test_the_last_answer_is_final_and_ends_where_the_segment_ends() -> None:
    segment, embedder = segment_of(1000)
    segment.add(np.zeros(2000, np.float32))
    segment.end_at(2900)
    (answer,) = work(segment)
    assert (answer.embeddings.rows, answer.end_sample, answer.final) == (3, 2900, True)
    assert answer.text == "abc"
    assert embedder.samples == embedder.finished == 1900
    assert segment.is_complete


def test_an_end_before_what_was_taken_gives_a_final_without_rows() -> None:
    segment, embedder = segment_of(0)
    segment.add(np.zeros(4 * 768, np.float32))
    work(segment)
    segment.end_at(1000)
    (answer,) = work(segment)
    assert (answer.first_index, answer.embeddings.rows, answer.final) == (3, 0, True)
    assert answer.text == "abc"
    assert embedder.finished == 1000


def test_an_empty_segment_is_final_at_once() -> None:
    segment, _ = segment_of(50)
    segment.end_at(50)
    (answer,) = work(segment)
    assert (answer.embeddings.rows, answer.end_sample, answer.final) == (0, 50, True)
    assert answer.text == ""
