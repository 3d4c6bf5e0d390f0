"""Opus: what comes out is what went in, 6.5 ms later, whatever happens on the way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minmo.audio.opus import (
    DECODED_RATE_HZ,
    LOOK_AHEAD_SECONDS,
    MAX_PACKET_BYTES,
    OpusDecoder,
    OpusEncoder,
)
from minmo.audio.pcm import OPUS_RATES_HZ, AudioError, Samples

SECONDS = 0.5


def voice(rate_hz: int, seconds: float = SECONDS) -> Samples:
    """Something like a high vowel; what is lower, Opus filters, and shifts its phase."""
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    tones = [np.sin(2 * np.pi * 400 * n * time) / n for n in range(1, 8)]
    return (0.2 * np.sum(tones, axis=0)).astype(np.float32)


def packets_of(samples: Samples, rate_hz: int, piece: int = 10**9) -> list[bytes]:
    encoder = OpusEncoder(rate_hz)
    packets = []
    for start in range(0, len(samples), piece):
        packets += encoder.encode(samples[start : start + piece])
    return packets + encoder.encode(np.zeros(0, np.float32), last=True)


def decoded(packets: list[bytes], rate_hz: int) -> Samples:
    decoder = OpusDecoder(rate_hz)
    return np.concatenate([decoder.decode(packet) for packet in packets])


@pytest.mark.parametrize("rate", OPUS_RATES_HZ)
def test_all_of_a_sound_comes_back_after_the_delay(rate) -> None:
    sound = voice(rate)
    back = decoded(packets_of(sound, rate), rate)
    late = round(LOOK_AHEAD_SECONDS * rate)
    assert len(back) % (rate // 50) == 0
    assert len(sound) + late <= len(back) < len(sound) + late + rate // 50
    assert np.corrcoef(sound, back[late : late + len(sound)])[0, 1] > 0.9


@pytest.mark.parametrize("rate", [8000, 24_000])
def test_lower_rates_are_the_same_sound_as_48_khz(rate) -> None:
    packets = packets_of(voice(rate), rate)
    assert np.array_equal(decoded(packets, rate), decoded(packets, 48_000)[:: 48_000 // rate])


def test_packets_do_not_depend_on_how_the_samples_come() -> None:
    sound = voice(24_000)
    assert packets_of(sound, 24_000, piece=77) == packets_of(sound, 24_000)


def test_speech_takes_a_tenth_of_the_bytes() -> None:
    packets = packets_of(voice(24_000, 2.0), 24_000)
    assert sum(map(len, packets)) < 2 * 24_000 * 2.0 / 10


def test_nothing_is_no_packet() -> None:
    encoder = OpusEncoder(16_000)
    assert encoder.encode(np.zeros(0, np.float32), last=True) == []
    assert encoder.encode(np.zeros(319, np.float32)) == []


def test_a_lost_packet_is_concealed_by_as_much_sound() -> None:
    packets = packets_of(voice(16_000), 16_000)
    whole = decoded(packets, 16_000)
    packets[10] = b""
    holed = decoded(packets, 16_000)
    assert len(holed) == len(whole)
    gap = slice(10 * 320, 11 * 320)
    assert np.std(holed[gap]) > 0.5 * np.std(whole[gap])


def test_many_lost_packets_fade_out() -> None:
    decoder = OpusDecoder()
    for packet in packets_of(voice(16_000), 16_000):
        decoder.decode(packet)
    lost = [decoder.decode(b"") for _ in range(50)]
    assert all(len(samples) == 960 for samples in lost)
    assert np.abs(lost[-1]).max() < 0.02


def test_a_stream_may_begin_with_a_loss() -> None:
    assert np.array_equal(OpusDecoder(16_000).decode(b""), np.zeros(320, np.float32))


def test_a_packet_that_is_too_long_is_refused() -> None:
    with pytest.raises(AudioError, match="must be at most 7650"):
        OpusDecoder().decode(bytes(MAX_PACKET_BYTES + 1))


def test_a_bad_packet_is_refused_and_the_next_is_decoded() -> None:
    decoder = OpusDecoder()
    good = packets_of(voice(48_000), 48_000)
    decoder.decode(good[0])
    with pytest.raises(AudioError, match="no Opus packet"):
        decoder.decode(b"\x03\x00")
    assert len(decoder.decode(good[1])) == 960


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_bounded_sound_or_refused(packet) -> None:
    decoder = OpusDecoder()
    try:
        samples = decoder.decode(packet)
    except AudioError:
        samples = decoder.decode(b"")
    assert 0 < len(samples) <= 0.12 * DECODED_RATE_HZ
    assert np.isfinite(samples).all()


@pytest.mark.parametrize("make", [OpusEncoder, OpusDecoder])
def test_other_rates_are_refused(make) -> None:
    with pytest.raises(AudioError, match="8000, 12000, 16000, 24000, 48000 Hz"):
        make(44_100)


def test_without_its_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minmo.audio.opus.available", lambda: False)
    with pytest.raises(AudioError, match=r"pip install 'minmo\[opus\]'"):
        OpusDecoder()
