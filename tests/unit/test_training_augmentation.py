"""What rooms, microphones and lines do to speech: each does what it says, and time stays."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from minmo.training.augmentation import (
    Samples,
    add_noise,
    augment,
    change_speed,
    code,
    draw_speed,
    generator,
    limit_band,
    make_noise,
    mask,
    reverberate,
)
from minmo.training.config import AugmentationConfig

NOTHING = AugmentationConfig(
    clean=0, speed=0, reverberation=0, noise=0, band_limit=0, codec=0, gain=0, clipping=0, masking=0
)
EVERYTHING = replace(
    NOTHING,
    **{  # type: ignore[arg-type]
        one.name: 1.0
        for one in fields(NOTHING)
        if one.type == "float" and one.name not in ("clean", "mask_seconds")
    },
)


def random(number: int = 0) -> np.random.Generator:
    return generator(1, 2, f"clip {number}")


def speech(seconds: float = 1.0, seed: int = 0) -> Samples:
    """Noise that swells and falls as syllables do, quiet before and behind."""
    length = int(16_000 * seconds)
    noise = np.random.default_rng(seed).standard_normal(length).astype(np.float32)
    shape = 0.2 * np.abs(np.sin(np.arange(length) / 1600)).astype(np.float32)
    return np.pad(noise * shape, (1600, 1600))


def rms(samples: Samples) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


def power(samples: Samples, low: float, high: float) -> float:
    spectrum = np.abs(np.fft.rfft(samples)) ** 2
    frequencies = np.fft.rfftfreq(len(samples), 1 / 16_000)
    return float(spectrum[(frequencies >= low) & (frequencies < high)].mean())


def delay(before: Samples, after: Samples) -> int:
    """By how many samples `after` is late."""
    size = 1 << (len(before) + len(after)).bit_length()
    product = np.fft.rfft(after, size) * np.conj(np.fft.rfft(before, size))
    lag = int(np.argmax(np.fft.irfft(product, size)))
    return lag if lag < size // 2 else lag - size


@pytest.mark.parametrize("codec", ["mu_law", "narrow", "opus"])
def test_everything_keeps_length_time_and_range(codec: str) -> None:
    config = replace(EVERYTHING, codecs=(codec,), snr=(20.0, 20.0), rt60=(0.2, 0.2))
    before = speech()
    after = augment(before, config, random(), [speech(0.7, 1)])
    assert after.dtype == np.float32
    assert len(after) == len(before)
    assert np.abs(after).max() <= 1
    assert abs(delay(before, after)) <= 16


def test_the_same_clip_changes_alike_and_another_otherwise() -> None:
    before, others = speech(), [speech(0.5, 4)]
    first, again, other = (
        augment(before, EVERYTHING, random(number), others) for number in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    epochs = [generator(1, epoch, "a").random() for epoch in (1, 2)]
    assert epochs[0] != epochs[1]


def test_nothing_changes_nothing() -> None:
    assert np.array_equal(augment(speech(), NOTHING, random()), speech())
    assert augment(before := speech(), replace(EVERYTHING, clean=1.0), random()) is before
    assert draw_speed(NOTHING, random()) == 1


@pytest.mark.parametrize("kind", ["white", "pink", "brown", "babble"])
@pytest.mark.parametrize("snr", [0.0, 20.0])
def test_noise_is_as_loud_as_it_says(kind: str, snr: float) -> None:
    before = np.sin(np.arange(32_000) / 7).astype(np.float32)
    noise = make_noise(kind, len(before), random(), [speech(2.5)])
    added = add_noise(before, noise, snr) - before
    assert 20 * np.log10(rms(before) / rms(added)) == pytest.approx(snr, abs=0.3)


def test_noise_falls_with_frequency_as_its_colour_says() -> None:
    falls = []
    for kind in ("white", "pink", "brown"):
        noise = make_noise(kind, 160_000, random())
        falls.append(10 * np.log10(power(noise, 400, 500) / power(noise, 3200, 4000)))
    assert falls == pytest.approx([0, 9, 18], abs=1.5)


def test_babble_without_others_is_noise_all_the_same() -> None:
    assert rms(make_noise("babble", 1000, random())) > 0
    assert rms(make_noise("babble", 1000, random(), [np.zeros(500, np.float32)])) == 0


def test_a_room_rings_for_its_time_and_keeps_level_and_start() -> None:
    click = np.zeros(32_000, np.float32)
    click[1000] = 0.5
    short, long = (reverberate(click, rt60, random()) for rt60 in (0.15, 0.9))
    assert int(np.abs(long).argmax()) == 1000
    assert rms(long) == pytest.approx(rms(click), rel=1e-3)
    assert not np.abs(long[:999]).max() > 1e-5
    tail = slice(1000 + 6400, 1000 + 9600)
    assert rms(long[tail]) > 20 * rms(short[tail])


def test_bands_are_limited() -> None:
    noise = make_noise("white", 64_000, random())
    telephone = limit_band(noise, 300, 3400)
    assert power(telephone, 500, 3000) == pytest.approx(power(noise, 500, 3000), rel=0.05)
    assert power(telephone, 0, 150) < 0.01 * power(noise, 0, 150)
    assert power(telephone, 4500, 8000) < 1e-3 * power(noise, 4500, 8000)
    low = limit_band(noise, 0, 2000)
    assert power(low, 0, 1500) == pytest.approx(power(noise, 0, 1500), rel=0.05)
    assert power(low, 3000, 8000) < 1e-4 * power(noise, 3000, 8000)


def test_mu_law_is_near_and_no_more() -> None:
    tone = (0.5 * np.sin(np.arange(16_000) / 10)).astype(np.float32)
    noise = (code(tone, "mu_law") - tone)[1000:-1000]
    assert 30 < 20 * np.log10(rms(tone) / rms(noise)) < 45


def test_speed_makes_a_clip_shorter_and_higher() -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000).astype(np.float32)
    faster = change_speed(tone, 1.1)
    assert len(faster) == pytest.approx(16_000 / 1.1, abs=2)
    assert power(faster, 1080, 1120) > 100 * power(faster, 980, 1020)


def test_masks_are_short_and_silent() -> None:
    ones = np.ones(16_000, np.float32)
    masked = mask(ones, 3, 0.1, random())
    assert 0 < (masked == 0).sum() <= 3 * 1600
    assert ones.all()


def test_clipping_and_gain_are_in_their_ranges() -> None:
    before = speech()
    louder = augment(before, replace(NOTHING, gain=1.0, gain_range=(-6.0, -6.0)), random())
    assert rms(louder) == pytest.approx(rms(before) / 2, rel=0.01)
    half = augment(before, replace(NOTHING, clipping=1.0, clipping_range=(0.5, 0.5)), random())
    assert np.abs(half).max() == pytest.approx(np.abs(before).max() / 2)


def test_silence_and_a_single_sample_survive() -> None:
    for clip in (np.zeros(1600, np.float32), np.ones(1, np.float32)):
        after = augment(clip, EVERYTHING, random(), [clip])
        assert len(after) == len(clip)
        assert np.isfinite(after).all()
