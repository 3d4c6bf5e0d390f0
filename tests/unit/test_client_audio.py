"""The virtual loudspeaker, recordings, and the cutting of long ones."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from minmo.client.errors import RecordingError
from minmo.client.recording import Recording
from minmo.client.speaker import Playback, Speaker
from minmo.client.speech import parts

ONES = np.ones(1000, dtype=np.float32)


def test_audio_is_played_as_fast_as_time_passes() -> None:
    speaker = Speaker(rate_hz=1000)
    speaker.receive("a", 0, ONES, final=True, now_seconds=10.0)
    assert speaker.news(10.25) == [Playback("a", 250, finished=False)]
    assert speaker.news(10.25) == []
    assert speaker.news(12.0) == [Playback("a", 1000, finished=True)]
    assert len(speaker.heard("a")) == 1000


def test_time_without_audio_is_not_made_up_for() -> None:
    speaker = Speaker(rate_hz=1000)
    speaker.receive("a", 0, ONES[:100], final=False, now_seconds=0.0)
    speaker.receive("a", 100, ONES[:100], final=True, now_seconds=5.0)
    assert speaker.news(5.0625) == [Playback("a", 162, finished=False)]


def test_a_stopped_utterance_is_heard_up_to_the_stop() -> None:
    speaker = Speaker(rate_hz=1000)
    speaker.receive("a", 0, ONES, final=False, now_seconds=0.0)
    speaker.stop("a", 0.3)
    speaker.receive("a", 1000, ONES, final=True, now_seconds=0.4)
    assert speaker.news(2.0) == [Playback("a", 300, finished=True)]
    assert len(speaker.heard("a")) == 300
    assert not speaker.playing


def test_utterances_are_played_one_after_the_other() -> None:
    speaker = Speaker(rate_hz=1000)
    speaker.receive("a", 0, ONES, final=True, now_seconds=0.0)
    speaker.receive("b", 0, ONES, final=True, now_seconds=0.1)
    assert speaker.news(1.5) == [Playback("a", 1000, True), Playback("b", 500, False)]


def test_lost_audio_is_silence_and_repeated_audio_is_played_once() -> None:
    speaker = Speaker(rate_hz=1000, speed=math.inf)
    speaker.receive("a", 0, ONES[:10], final=False, now_seconds=0.0)
    speaker.receive("a", 5, ONES[:10], final=False, now_seconds=0.0)
    speaker.receive("a", 20, ONES[:10], final=True, now_seconds=0.0)
    heard = speaker.heard("a")
    assert heard.tolist() == [1.0] * 15 + [0.0] * 5 + [1.0] * 10


def test_only_the_latest_utterances_are_kept() -> None:
    speaker = Speaker(rate_hz=1000, speed=math.inf)
    for number in range(100):
        speaker.receive(str(number), 0, ONES, final=True, now_seconds=0.0)
    assert len(speaker.heard("0")) == 0
    assert len(speaker.heard("99")) == 1000


def test_the_end_of_speech_leaves_out_the_silence_after_it() -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal(0, 0.001, 48_000).astype(np.float32)
    samples[8000:20_000] += rng.normal(0, 0.2, 12_000).astype(np.float32)
    samples[30_000:40_000] += rng.normal(0, 0.2, 10_000).astype(np.float32)
    recording = Recording(Path("a.wav"), samples, 16_000)
    assert recording.speech_end_ms() == pytest.approx(2500, abs=10)
    assert recording.speech_end_ms(before_ms=1500) == pytest.approx(1250, abs=10)


def test_a_rate_that_the_server_does_not_know_is_resampled(tmp_path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros((9600, 2)), 9600)
    recording = Recording.read(path)
    assert recording.rate_hz == 16_000
    assert recording.samples.shape == (16_000,)
    assert recording.silent


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "there is no file"), (b"", "cannot be read as audio"), (b"text", "cannot be read")],
)
def test_what_is_no_recording_is_refused(tmp_path, content, message) -> None:
    path = tmp_path / "a.wav"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecordingError, match=message):
        Recording.read(path)


def test_a_recording_without_samples_is_refused(tmp_path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(0), 16_000)
    with pytest.raises(RecordingError, match="0 samples"):
        Recording.read(path)


def test_long_recordings_are_cut_where_they_are_quiet() -> None:
    rate = 1000
    samples = np.ones(100 * rate, dtype=np.float32)
    samples[25_000:25_600] = 0
    samples[52_000:52_400] = 0
    cuts = list(parts(samples, rate, part_seconds=30))
    assert cuts[0][0] == 0
    assert cuts[-1][1] == len(samples)
    assert all(before[1] == after[0] for before, after in pairwise(cuts))
    assert all(end - start <= 30 * rate for start, end in cuts)
    assert 25_000 <= cuts[0][1] <= 25_600
    assert 52_000 <= cuts[1][1] <= 52_400


def test_a_short_recording_is_one_part() -> None:
    assert list(parts(ONES, 1000, part_seconds=30)) == [(0, 1000)]
