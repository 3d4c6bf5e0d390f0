"""Sounds that are no speech: coughs, knocking, something like music, hissing. All are made here."""

from __future__ import annotations

import numpy as np

from minmo.training.augmentation import Random, Samples, limit_band, make_noise
from minmo.training.data.duplex_scenes import MadeSound
from minmo.training.shar import SAMPLE_RATE

# A semitone is the twelfth root of two; the chords are of a major scale.
_CHORDS = ((0, 4, 7), (5, 9, 12), (7, 11, 14), (9, 12, 16))
_HARMONICS = 5
_BEAT_SECONDS = 0.4
_SILENT = 1e-6


def make_sound(what: MadeSound, seconds: float, level: float, random: Random) -> Samples:
    """A sound.

    Args:
        what: it is.
        seconds: that it lasts.
        level: dB of full scale, of its mean power.
        random: draws it.

    Returns:
        `[samples]` at 16 kHz.
    """
    count = max(1, int(seconds * SAMPLE_RATE))
    times: Samples = np.arange(count, dtype=np.float32) / np.float32(SAMPLE_RATE)
    if what == "cough":
        sound = _cough(times, random)
    elif what == "knock":
        sound = _knock(times, random)
    elif what == "music":
        sound = _music(times, random)
    else:
        sound = limit_band(make_noise("white", count, random), 1500.0, 7000.0)
    power = float(np.sqrt(np.mean(np.square(sound))))
    return (sound * np.float32(10 ** (level / 20) / max(power, _SILENT))).astype(np.float32)


def _cough(times: Samples, random: Random) -> Samples:
    """Bursts of noise with the resonances of a throat, each shorter than the one before."""
    noise = random.standard_normal(len(times), dtype=np.float32)
    sound = limit_band(noise, 200.0, 1200.0) + 0.5 * limit_band(noise, 1800.0, 3600.0)
    envelope = np.zeros_like(times)
    bursts = int(random.integers(1, 4))
    for number in range(bursts):
        since = times - times[-1] * number / bursts
        decay = np.float32(random.uniform(0.05, 0.12))
        envelope += np.where(since >= 0, np.exp(-np.maximum(since, 0) / decay), 0)
    return sound * envelope


def _knock(times: Samples, random: Random) -> Samples:
    """Thuds of a low, damped tone."""
    sound = np.zeros_like(times)
    pitch = random.uniform(90, 220)
    for start in np.arange(0.0, float(times[-1]) + 1e-3, random.uniform(0.15, 0.35)):
        since = np.maximum(times - np.float32(start), 0)
        thud = np.sin(2 * np.pi * pitch * since) * np.exp(-since / 0.03)
        sound += np.where(times >= start, thud, 0).astype(np.float32)
    return sound


def _music(times: Samples, random: Random) -> Samples:
    """Chords of harmonic tones that change with a beat."""
    sound = np.zeros_like(times)
    root = random.uniform(110, 330)
    chords = [_CHORDS[int(random.integers(len(_CHORDS)))] for _ in range(64)]
    beat = (times / _BEAT_SECONDS).astype(np.int64)
    for number in range(int(beat[-1]) + 1):
        held = beat == number
        since = times[held]
        for semitone in chords[number % len(chords)]:
            pitch = root * 2 ** (semitone / 12)
            for harmonic in range(1, _HARMONICS + 1):
                sound[held] += np.sin(2 * np.pi * pitch * harmonic * since) / harmonic
    return sound
