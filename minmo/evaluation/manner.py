"""How something is said: how fast, how loud, how high."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minmo.audio.pcm import Samples
from minmo.evaluation.errors import needs_extra

# Frames of speech are at most so much quieter than the loudest one, in dB: what is below is the
# pause before, after and between words.
_SPEECH_DB = 40.0
_FRAME_SECONDS = 0.02
_LOWEST_HZ, _HIGHEST_HZ = 60.0, 600.0


@dataclass(frozen=True)
class Manner:
    """How a clip is spoken.

    Attributes:
        seconds: from the first sound of speech to the last.
        loudness_db: root mean square of the frames with speech, in dB of full scale.
        pitch_hz: median fundamental frequency of what is voiced; None where nothing is.
    """

    seconds: float
    loudness_db: float
    pitch_hz: float | None


def manner_of(samples: Samples, rate_hz: int) -> Manner | None:
    """Measures a clip.

    Args:
        samples: `[samples]`.
        rate_hz: their rate.

    Returns:
        None for a clip that is silent, or shorter than a frame.

    Raises:
        EvaluationError: WORLD, which finds the pitch, is not installed.
    """
    size = round(_FRAME_SECONDS * rate_hz)
    frames = samples[: len(samples) // size * size].reshape(-1, size).astype(np.float64)
    power = np.mean(frames**2, axis=1)
    if not power.any():
        return None
    speech = np.flatnonzero(power > power.max() * 10 ** (-_SPEECH_DB / 10))
    seconds = float((speech[-1] + 1 - speech[0]) * _FRAME_SECONDS)
    loudness = float(10 * np.log10(power[speech].mean()))
    return Manner(seconds, loudness, _median_pitch(samples, rate_hz))


def _median_pitch(samples: Samples, rate_hz: int) -> float | None:
    """By DIO and StoneMask (Morise et al., 2016, WORLD, section 2.1)."""
    try:
        import pyworld
    except ImportError as error:
        raise needs_extra("pyworld") from error
    clip = samples.astype(np.float64)
    rough, times = pyworld.dio(clip, rate_hz, f0_floor=_LOWEST_HZ, f0_ceil=_HIGHEST_HZ)
    found = pyworld.stonemask(clip, rough, times, rate_hz)
    return float(np.median(found[found > 0])) if (found > 0).any() else None
