"""What an encoder stream keeps of its audio, and what it makes of a segment."""

import numpy as np
import pytest
import torch

from minmo.audio.pcm import PcmFormat, Samples
from minmo.audio.resample import resample
from minmo.audio.vad import VadThresholds
from minmo.engine.listening import EmbeddingSchedule
from services.encoder.audio_buffer import AudioBuffer
from services.encoder.intake import AudioIntake
from services.encoder.segment import Segment


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


class CountingEmbedder:
    """Makes an embedding for every 10 samples; remembers what it got."""

    def __init__(self) -> None:
        self.taken: list[Samples] = []
        self.finished: int | None = None
        self.embeddings = 0

    @property
    def samples(self) -> int:
        return sum(len(chunk) for chunk in self.taken)

    def process(self, chunk: Samples) -> torch.Tensor:
        self.taken.append(chunk)
        return self._up_to(max(0, self.samples - 768) // 768)

    def finish(self, samples: int) -> torch.Tensor:
        self.finished = samples
        return self._up_to(-(-samples // 768))

    def _up_to(self, number: int) -> torch.Tensor:
        made = max(0, number - self.embeddings)
        self.embeddings += made
        return torch.ones(made, 4)


def segment_of(start: int) -> tuple[Segment, CountingEmbedder]:
    embedder = CountingEmbedder()
    schedule = EmbeddingSchedule(768, step=768, look_ahead=768, window=7680)
    return Segment(3, start, embedder, schedule), embedder  # type: ignore[arg-type]


def test_a_segment_works_in_steps_and_says_what_its_embeddings_stand_for() -> None:
    segment, embedder = segment_of(1000)
    segment.add(np.zeros(700, np.float32))
    assert not segment.has_work
    segment.add(np.zeros(7 * 768 - 700, np.float32))
    answers = []
    while segment.has_work:
        made = segment.next_job()()
        answers.append(segment.answer(made, final=segment.is_complete).embeddings)
    assert [len(chunk) for chunk in embedder.taken] == [4 * 768, 3 * 768]
    assert [(answer.first_index, answer.embeddings.rows) for answer in answers] == [(0, 3), (3, 3)]
    assert [answer.end_sample for answer in answers] == [1000 + 3 * 768, 1000 + 6 * 768]
    assert not any(answer.final for answer in answers)


def finish(segment: Segment) -> list[tuple[int, int, int, bool]]:
    """Works until the segment is complete: first index, rows, end and final of each answer."""
    answers = []
    while segment.has_work:
        made = segment.next_job()()
        message = segment.answer(made, final=segment.is_complete).embeddings
        answers.append(
            (message.first_index, message.embeddings.rows, message.end_sample, message.final)
        )
    return answers


def test_the_last_answer_is_final_and_ends_where_the_segment_ends() -> None:
    segment, embedder = segment_of(1000)
    segment.add(np.zeros(2000, np.float32))
    segment.end_at(2900)
    assert finish(segment) == [(0, 3, 2900, True)]
    assert embedder.samples == embedder.finished == 1900
    assert segment.is_complete


def test_an_end_before_what_was_taken_gives_a_final_without_rows() -> None:
    segment, embedder = segment_of(0)
    segment.add(np.zeros(4 * 768, np.float32))
    segment.answer(segment.next_job()(), final=False)
    segment.end_at(1000)
    assert finish(segment) == [(3, 0, 3 * 768, True)]
    assert embedder.finished == 1000


def test_an_empty_segment_is_final_at_once() -> None:
    segment, _ = segment_of(50)
    segment.end_at(50)
    assert finish(segment) == [(0, 0, 50, True)]
