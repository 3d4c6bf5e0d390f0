"""Resampling keeps time, tone and every sample."""

import numpy as np
import pytest

from minmo.audio.pcm import SAMPLE_RATES_HZ, Samples
from minmo.audio.resample import StreamResampler, resample, resampled_length


def sine(frequency_hz: float, rate_hz: int, seconds: float = 1.0) -> Samples:
    time = np.arange(int(rate_hz * seconds)) / rate_hz
    return (0.5 * np.sin(2 * np.pi * frequency_hz * time)).astype(np.float32)


def pieces(samples: Samples, size: int) -> list[Samples]:
    return [samples[start : start + size] for start in range(0, len(samples), size)]


@pytest.mark.parametrize("rate", SAMPLE_RATES_HZ)
@pytest.mark.parametrize("frequency", [300, 1000, 3400])
def test_a_tone_keeps_its_level_its_pitch_and_its_place(rate: int, frequency: int) -> None:
    heard = resample(sine(frequency, rate), rate, 16000)
    expected = sine(frequency, 16000)
    # The ends of a clip are smeared by the filter; between them the two are the same.
    error = (heard - expected)[1600:-1600]
    assert np.sqrt((error**2).mean()) < 0.5 * 10 ** (-36 / 20)
    assert np.sqrt((heard[1600:-1600] ** 2).mean()) == pytest.approx(0.5 / 2**0.5, rel=0.02)


@pytest.mark.parametrize("rate", [22050, 24000, 32000, 44100, 48000])
def test_what_is_above_the_new_band_is_gone(rate: int) -> None:
    heard = resample(sine(9500, rate), rate, 16000)[1600:-1600]
    assert np.abs(heard).max() < 1e-4


@pytest.mark.parametrize("rate", SAMPLE_RATES_HZ)
@pytest.mark.parametrize("size", [1, 37, 160, 960, 100_000])
def test_any_pieces_give_the_same_samples_and_none_is_lost(rate: int, size: int) -> None:
    noise = np.random.default_rng(rate).normal(scale=0.2, size=rate // 4).astype(np.float32)
    stream = StreamResampler(rate)
    given = [stream.process(piece) for piece in pieces(noise, size)]
    given.append(stream.process(noise[:0], last=True))
    heard = np.concatenate(given)
    assert len(heard) == resampled_length(len(noise), rate, 16000) == stream.samples_out
    np.testing.assert_allclose(heard, resample(noise, rate, 16000), atol=1e-5)


@pytest.mark.parametrize("rate", SAMPLE_RATES_HZ)
def test_output_lags_by_no_more_than_the_filter_looks_ahead(rate: int) -> None:
    stream = StreamResampler(rate)
    most = 0
    for piece in pieces(sine(440, rate), rate // 50):
        stream.process(piece)
        most = max(most, stream.samples_due - stream.samples_out)
    assert most <= (0 if rate == 16000 else 0.12 * 16000 if rate < 16000 else 0.06 * 16000)


@pytest.mark.parametrize("rate", SAMPLE_RATES_HZ)
def test_a_preview_is_what_the_end_would_give_and_changes_nothing(rate: int) -> None:
    noise = np.random.default_rng(1).normal(scale=0.2, size=rate).astype(np.float32)
    stream, ending = StreamResampler(rate), StreamResampler(rate)
    half = pieces(noise[: rate // 2], 441)
    for piece in half:
        stream.process(piece)
        ending.process(piece)
    np.testing.assert_allclose(stream.preview(), ending.process(noise[:0], last=True), atol=1e-4)
    rest = stream.process(noise[rate // 2 :], last=True)
    np.testing.assert_allclose(rest[-4000:], resample(noise, rate, 16000)[-4000:], atol=1e-5)


def test_a_stream_that_ended_takes_no_more() -> None:
    stream = StreamResampler(48000)
    stream.process(np.zeros(100, np.float32), last=True)
    with pytest.raises(RuntimeError, match="start a new one"):
        stream.process(np.zeros(100, np.float32))


@pytest.mark.parametrize(
    ("samples", "rate", "expected"),
    [
        (48000, 48000, 16000),
        (44100, 44100, 16000),
        (1, 48000, 0),
        (2, 48000, 1),
        (0, 8000, 0),
        (11025, 11025, 16000),
    ],
)
def test_a_length_is_rounded_to_the_nearest_sample(samples: int, rate: int, expected: int) -> None:
    assert resampled_length(samples, rate, 16000) == expected
