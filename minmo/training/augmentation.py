"""What rooms, microphones and lines do to speech, drawn anew for each clip and epoch.

Everything is NumPy on one clip; a clip's changes depend on the seed, the epoch and the clip alone.
"""

from __future__ import annotations

import io
import zlib
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from minmo.training.config import AugmentationConfig, Range

Samples = npt.NDArray[np.float32]
Random = np.random.Generator

SAMPLE_RATE = 16_000
_LINE_RATE = 8_000
_MU = 255.0
_SILENT = 1e-5
_FAST_LENGTHS: list[int] = sorted(
    int(2**a * 3**b * 5**c)
    for a in range(5, 24)
    for b in range(4)
    for c in range(3)
    if 2**a * 3**b * 5**c < 2**24
)


def generator(seed: int, epoch: int, clip: str, purpose: int = 0) -> Random:
    """The generator of one clip in one epoch: the same for the same arguments, everywhere."""
    return np.random.default_rng([seed, epoch, zlib.crc32(clip.encode()), purpose])


def change_speed(samples: Samples, factor: float) -> Samples:
    """Plays faster (and higher) by a factor; `[samples]` to `[samples / factor]`."""
    resampled: Samples = soxr.resample(samples, SAMPLE_RATE * factor, SAMPLE_RATE, "MQ")
    return resampled


def draw_speed(config: AugmentationConfig, random: Random) -> float:
    """The factor of a clip's speed; 1 for one that stays as it is."""
    return _uniform(random, config.speed_range) if random.random() < config.speed else 1.0


def augment(
    samples: Samples,
    config: AugmentationConfig,
    random: Random,
    others: Sequence[Samples] = (),
) -> Samples:
    """A clip as it may sound elsewhere; time stays what it is.

    Args:
        samples: `[samples]`, float32, 16 kHz.
        config: how often, how strongly.
        random: of the clip.
        others: clips that may babble in the background.

    Returns:
        `[samples]`, float32, within -1 to 1.
    """
    if random.random() < config.clean:
        return samples
    sound = samples
    if random.random() < config.reverberation:
        sound = reverberate(sound, _uniform(random, config.rt60), random)
    if random.random() < config.noise:
        kind = config.noise_kinds[int(random.integers(len(config.noise_kinds)))]
        noise = make_noise(kind, len(sound), random, others)
        sound = add_noise(sound, noise, _uniform(random, config.snr))
    if random.random() < config.band_limit:
        if random.random() < 0.5:
            sound = limit_band(sound, 300.0, 3400.0)
        else:
            sound = limit_band(sound, 0.0, _uniform(random, config.low_pass))
    if random.random() < config.codec:
        codec = config.codecs[int(random.integers(len(config.codecs)))]
        sound = code(sound, codec)
    if random.random() < config.gain:
        sound = sound * np.float32(10 ** (_uniform(random, config.gain_range) / 20))
    if random.random() < config.clipping:
        peak = _peak(sound) * _uniform(random, config.clipping_range)
        sound = np.clip(sound, -peak, peak)
    if random.random() < config.masking:
        sound = mask(sound, config.masks, config.mask_seconds, random)
    return np.clip(sound, -1.0, 1.0)


def reverberate(samples: Samples, rt60: float, random: Random) -> Samples:
    """Sound in a room; the direct sound stays where it is, the level too.

    The room is drawn: a few early reflections, then noise that falls by 60 dB in `rt60` seconds.
    """
    length = max(64, int(rt60 * SAMPLE_RATE))
    times = np.arange(length, dtype=np.float32) / SAMPLE_RATE
    room = random.standard_normal(length, dtype=np.float32)
    room *= np.exp(np.float32(-6.908 / rt60) * times)
    room[: int(0.004 * SAMPLE_RATE)] = 0
    # Direct to reverberant energy: near the microphone or at the other end of the room.
    ratio = 10 ** (random.uniform(-2, 12) / 10)
    room *= np.float32(1 / np.sqrt(ratio * max(float(room @ room), 1e-9)))
    delays = random.uniform(0.001, 0.04, int(random.integers(4, 12)))
    places = np.minimum((delays * SAMPLE_RATE).astype(np.int64), length - 1)
    signs = random.choice((-1.0, 1.0), len(places))
    np.add.at(room, places, (signs * random.uniform(0.1, 0.6, len(places))).astype(np.float32))
    room[0] = 1
    size = _fast_length(len(samples) + length)
    spectrum = np.fft.rfft(samples, size) * np.fft.rfft(room, size)
    sound: Samples = np.fft.irfft(spectrum, size)[: len(samples)].astype(np.float32, copy=False)
    return sound * np.float32(_rms(samples) / max(_rms(sound), _SILENT))


def make_noise(kind: str, length: int, random: Random, others: Sequence[Samples] = ()) -> Samples:
    """Noise of a kind, `[length]`; babble without others to babble is pink noise."""
    if kind == "babble" and others:
        return _babble(length, random, others)
    if kind == "white":
        return random.standard_normal(length, dtype=np.float32)
    size = _fast_length(length)
    bins = size // 2 + 1
    drawn = random.standard_normal(2 * bins, dtype=np.float32).view(np.complex64)
    # Power falls with frequency, by 3 dB an octave (pink) or 6 (brown); below 30 Hz it is level.
    lowest = max(1, 30 * size // SAMPLE_RATE)
    slope = np.maximum(np.arange(bins, dtype=np.float32), lowest)
    drawn *= 1 / (slope if kind == "brown" else np.sqrt(slope))
    noise: Samples = np.fft.irfft(drawn, size)[:length].astype(np.float32, copy=False)
    return noise


def add_noise(samples: Samples, noise: Samples, snr: float) -> Samples:
    """Speech and noise, so many dB apart where there is speech."""
    loud = np.abs(samples) > 0.02 * _peak(samples)
    speech = _rms(samples[loud]) if loud.any() else 0.0
    scale = speech / max(_rms(noise), 1e-12) * 10 ** (-snr / 20)
    return samples + noise * np.float32(scale)


def limit_band(samples: Samples, low: float, high: float) -> Samples:
    """Only what lies between two frequencies, Hz; 0 for no lower end."""
    size = _fast_length(len(samples))
    frequencies = np.fft.rfftfreq(size, 1 / SAMPLE_RATE).astype(np.float32)
    response = 1 / (1 + (frequencies / np.float32(high)) ** 16)
    if low:
        response *= 1 - 1 / (1 + (frequencies / np.float32(low)) ** 8)
    spectrum = np.fft.rfft(samples, size) * response
    limited: Samples = np.fft.irfft(spectrum, size)[: len(samples)].astype(np.float32, copy=False)
    return limited


def code(samples: Samples, codec: str) -> Samples:
    """A codec's round trip: `mu_law` (G.711 at 8 kHz), `narrow` (8 kHz) or `opus`."""
    if codec == "opus":
        return _fit(_opus(samples), len(samples))
    line: Samples = soxr.resample(samples, SAMPLE_RATE, _LINE_RATE, "MQ")
    if codec == "mu_law":
        line = _mu_law(line)
    return _fit(soxr.resample(line, _LINE_RATE, SAMPLE_RATE, "MQ"), len(samples))


def mask(samples: Samples, masks: int, seconds: float, random: Random) -> Samples:
    """Up to so many stretches of up to so many seconds zeroed: packets that were lost."""
    masked = samples.copy()
    for _ in range(int(random.integers(1, masks + 1)) if masks else 0):
        length = int(random.uniform(0.1, 1.0) * seconds * SAMPLE_RATE)
        start = int(random.integers(max(1, len(samples) - length)))
        masked[start : start + length] = 0
    return masked


def _babble(length: int, random: Random, others: Sequence[Samples]) -> Samples:
    babble = np.zeros(length, dtype=np.float32)
    for _ in range(int(random.integers(2, 6))):
        other = others[int(random.integers(len(others)))]
        level = _rms(other)
        if level < _SILENT:
            continue
        start = int(random.integers(len(other)))
        # Goes round from a random place, as long as the clip is.
        turned = np.take(other, np.arange(start, start + length), mode="wrap")
        babble += turned * np.float32(random.uniform(0.5, 1.0) / level)
    return babble


def _mu_law(samples: Samples) -> Samples:
    magnitude = np.log1p(_MU * np.minimum(np.abs(samples), 1)) * np.float32(1 / np.log1p(_MU))
    steps = np.round(np.copysign(magnitude, samples) * 127) * np.float32(1 / 127)
    decoded = np.expm1(np.abs(steps) * np.float32(np.log1p(_MU))) * np.float32(1 / _MU)
    return np.copysign(decoded, steps).astype(np.float32, copy=False)


def _opus(samples: Samples) -> Samples:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE, format="OGG", subtype="OPUS")
    buffer.seek(0)
    decoded, _ = soundfile.read(buffer, dtype="float32")
    return np.asarray(decoded, dtype=np.float32)


def _fit(samples: Samples, length: int) -> Samples:
    if len(samples) >= length:
        return samples[:length]
    return np.pad(samples, (0, length - len(samples)))


def _fast_length(length: int) -> int:
    """The next length whose Fourier transform is quick."""
    if length > _FAST_LENGTHS[-1]:
        return length
    return _FAST_LENGTHS[bisect_left(_FAST_LENGTHS, length)]


def _rms(samples: Samples) -> float:
    return float(np.sqrt(samples @ samples / max(1, len(samples))))


def _peak(samples: Samples) -> float:
    return float(max(-samples.min(), samples.max())) if len(samples) else 0.0


def _uniform(random: Random, ends: Range) -> float:
    return float(random.uniform(*ends))
