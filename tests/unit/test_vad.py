"""When somebody is held to speak, and from where to where."""

from collections.abc import Iterable

import numpy as np
import pytest

from minmo.audio.pcm import Samples
from minmo.audio.vad import (
    FRAME_SAMPLES,
    Activity,
    SileroVad,
    SpeechProbability,
    VadThresholds,
    VoiceActivityDetector,
)
from tests.listening import Recording, recordings, weights_or_skip


def says(*probabilities: float) -> SpeechProbability:
    """A model that gives these probabilities, one a frame."""
    values = iter(probabilities)
    return lambda frame: next(values)


def run(probabilities: Iterable[float], start_sample: int = 0) -> list[Activity]:
    """What the detector says after each frame of these probabilities."""
    values = list(probabilities)
    detector = VoiceActivityDetector(says(*values), start_sample=start_sample)
    return [detector.process(np.zeros(FRAME_SAMPLES, np.float32)) for _ in values]


def test_three_frames_of_speech_begin_it_where_the_first_of_them_started() -> None:
    heard = run([0.1, 0.6, 0.6, 0.6])
    assert [activity.speaking for activity in heard] == [False, False, False, True]
    assert heard[-1].speech_start_sample == 1 * FRAME_SAMPLES
    assert heard[-1].speech_end_sample == 4 * FRAME_SAMPLES


def test_a_click_is_no_speech() -> None:
    heard = run([0.9, 0.9, 0.1, 0.1, 0.9, 0.1])
    assert not any(activity.speaking for activity in heard)
    assert heard[-1].speech_start_sample == heard[-1].speech_end_sample == 0


def test_between_the_thresholds_speech_goes_on_but_does_not_begin() -> None:
    assert not run([0.45] * 10)[-1].speaking
    assert run([0.9] * 3 + [0.45] * 10)[-1].speaking


def test_a_short_pause_belongs_to_the_speech() -> None:
    heard = run([0.9] * 3 + [0.1] * 2 + [0.9])
    assert all(activity.speaking for activity in heard[2:])
    assert heard[-1].speech_start_sample == 0
    assert heard[-1].speech_end_sample == 6 * FRAME_SAMPLES


def test_speech_ends_after_the_hangover_where_its_last_frame_ended() -> None:
    heard = run([0.9] * 4 + [0.1] * 3)
    assert [activity.speaking for activity in heard[3:]] == [True, True, True, False]
    assert heard[-1].speech_end_sample == 4 * FRAME_SAMPLES


def test_the_next_stretch_replaces_the_latest_only_once_it_has_begun() -> None:
    heard = run([0.9] * 3 + [0.1] * 3 + [0.9] * 3)
    assert [activity.speech_start_sample for activity in heard[6:]] == [0, 0, 6 * FRAME_SAMPLES]


def test_positions_count_from_where_the_stream_took_over() -> None:
    last = run([0.9] * 3, start_sample=1_000_000)[-1]
    assert last.speech_start_sample == 1_000_000
    assert last.end_sample == last.speech_end_sample == 1_000_000 + 3 * FRAME_SAMPLES


def test_a_chunk_tells_the_highest_probability_of_its_frames() -> None:
    detector = VoiceActivityDetector(says(0.2, 0.8, 0.3))
    assert detector.process(np.zeros(3 * FRAME_SAMPLES, np.float32)).probability == 0.8
    assert detector.process(np.zeros(100, np.float32)).probability == 0.3


@pytest.mark.parametrize("size", [1, 100, 511, 512, 513, 5000])
def test_any_chunks_give_the_same_frames(size: int) -> None:
    ramp = np.arange(5000, dtype=np.float32)
    frames: list[Samples] = []

    def remember(frame: Samples) -> float:
        frames.append(frame.copy())
        return 0.0

    detector = VoiceActivityDetector(remember)
    for start in range(0, len(ramp), size):
        activity = detector.process(ramp[start : start + size])
    assert activity.end_sample == 5000
    np.testing.assert_array_equal(np.concatenate(frames), ramp[: 5000 // 512 * 512])


def test_the_history_knows_the_loudest_moment_of_a_stretch() -> None:
    detector = VoiceActivityDetector(
        says(0.9, 0.1, 0.2, 0.3), start_sample=512, history_samples=3 * FRAME_SAMPLES
    )
    detector.process(np.zeros(4 * FRAME_SAMPLES, np.float32))
    assert detector.highest_probability(0, 10_000) == 0.3  # the first frame is forgotten
    assert detector.highest_probability(3 * 512, 4 * 512) == 0.2
    assert detector.highest_probability(3 * 512 - 1, 3 * 512) == 0.1
    assert detector.highest_probability(9_000, 10_000) == 0


def test_a_threshold_near_zero_keeps_its_order() -> None:
    for start in (0.01, 0.1, 0.5, 0.99):
        thresholds = VadThresholds.starting_at(start)
        assert 0 < thresholds.stop < thresholds.start


@pytest.fixture(scope="module")
def silero() -> SileroVad:
    return SileroVad(weights_or_skip("vad") / "silero_vad.onnx")


@pytest.mark.parametrize("spoken", recordings(), ids=lambda spoken: spoken.name)
def test_silero_finds_speech_between_silences(silero: SileroVad, spoken: Recording) -> None:
    speech = spoken.samples
    silence = np.zeros(16000, np.float32)
    detector = VoiceActivityDetector(silero.stream())
    before = detector.process(silence)
    assert not before.speaking
    during = detector.process(speech)
    assert during.probability > 0.9
    after = detector.process(silence)
    assert not after.speaking
    assert 16000 <= after.speech_start_sample < after.speech_end_sample
    assert after.speech_end_sample <= 16000 + len(speech) + 2 * FRAME_SAMPLES


def test_silero_sees_the_end_of_the_frame_before(
    silero: SileroVad, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows: list[Samples] = []

    class Session:
        def run(self, _: None, inputs: dict[str, Samples]) -> list[Samples]:
            windows.append(inputs["input"][0].copy())
            return [np.zeros((1, 1), np.float32), inputs["state"]]

    monkeypatch.setattr(silero, "_session", Session())
    ramp = np.arange(1, 1 + 2 * FRAME_SAMPLES, dtype=np.float32)
    stream = silero.stream()
    for frame in ramp.reshape(2, FRAME_SAMPLES):
        stream(frame)
    np.testing.assert_array_equal(windows[0], np.concatenate((np.zeros(64), ramp[:512])))
    np.testing.assert_array_equal(windows[1], ramp[512 - 64 :])


def test_silero_hears_no_speech_in_silence_and_noise(silero: SileroVad) -> None:
    noise = np.random.default_rng(0).normal(scale=0.1, size=5 * 16000).astype(np.float32)
    for sound in (np.zeros(5 * 16000, np.float32), noise, np.clip(100 * noise, -1, 1)):
        detector = VoiceActivityDetector(silero.stream())
        assert detector.process(sound).speech_end_sample == 0


def test_streams_of_one_model_do_not_disturb_each_other(silero: SileroVad) -> None:
    frames = recordings()[0].samples[: 40 * 512].reshape(-1, 512)
    alone = silero.stream()
    expected = [alone(frame) for frame in frames]
    first, second = silero.stream(), silero.stream()
    interleaved = [(first(frame), second(np.zeros(512, np.float32)))[0] for frame in frames]
    assert interleaved == expected
