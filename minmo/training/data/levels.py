"""Recordings made fit to learn a voice from: trimmed, levelled, and refused where they are spoilt.

Everything is told from the power of frames of 10 ms: the loud ones are speech, the quietest are
what the room sounds like.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from minmo.audio.pcm import Samples

KEPT_SECONDS = 0.05
"""Of silence that stay before and behind what is said."""
SPEECH_DBFS = -23.0
"""Mean power of speech that speakers are brought to: loud, with room for peaks."""

_FRAME_SECONDS = 0.01
_SILENT_DBFS = -100.0
# Percentiles of frames: the loudest may be a click, the quietest a gap in the file.
_QUIET, _LOUD = 5, 95
# Speech begins so far above the room, within these bounds below the loud frames.
_ABOVE_ROOM_DB, _NEAREST_DB, _FARTHEST_DB = 10.0, 30.0, 45.0
# A shorter noise is a click or a lip.
_SHORTEST_FRAMES = 3
_CLIPPED_AT, _CLIPPED_SHARE = 0.99, 1e-3
_NOISY_DB = 15.0
_AUDIBLE_DBFS = -60.0
_LOUDEST = 0.99


def trimmed(samples: Samples, rate_hz: int) -> Samples:
    """A clip without the silence around it, but for `KEPT_SECONDS`.

    Args:
        samples: `[samples]`.
        rate_hz: of them.

    Returns:
        `[fewer samples]`; all of them where nothing stands out as speech.
    """
    first, end = speech_range(samples, rate_hz)
    if (first, end) == (0, len(samples)):
        return samples
    kept = int(KEPT_SECONDS * rate_hz)
    return samples[max(first - kept, 0) : end + kept]


def speech_range(samples: Samples, rate_hz: int) -> tuple[int, int]:
    """Where speech begins and ends in a clip, in samples; all of it where nothing stands out.

    Args:
        samples: `[samples]`.
        rate_hz: of them.
    """
    speech = _speech(_levels(samples, rate_hz))
    if len(speech) < _SHORTEST_FRAMES:
        return 0, len(samples)
    frames = np.flatnonzero(sliding_window_view(speech, _SHORTEST_FRAMES).all(1))
    if not len(frames):
        return 0, len(samples)
    frame = int(_FRAME_SECONDS * rate_hz)
    return int(frames[0]) * frame, (int(frames[-1]) + _SHORTEST_FRAMES) * frame


def flaw_of(samples: Samples, rate_hz: int) -> str:
    """Why a voice should not learn from a clip, in a word or two; empty where it may.

    Args:
        samples: `[samples]`, as they were recorded.
        rate_hz: of them.
    """
    levels = _levels(samples, rate_hz)
    if not len(levels) or np.percentile(levels, _LOUD) < _AUDIBLE_DBFS:
        return "silent"
    if float(np.mean(np.abs(samples) >= _CLIPPED_AT)) > _CLIPPED_SHARE:
        return "clipped"
    quiet, loud = np.percentile(levels, (_QUIET, _LOUD))
    return "too noisy" if loud - quiet < _NOISY_DB else ""


def speech_dbfs(samples: Samples, rate_hz: int) -> float:
    """Mean power of what is speech in a clip, in dB of full scale."""
    levels = _levels(samples, rate_hz)
    speech = levels[_speech(levels)]
    return float(10 * np.log10(np.mean(10 ** (speech / 10)))) if len(speech) else _SILENT_DBFS


def amplified(samples: Samples, gain_db: float) -> Samples:
    """A clip made louder or softer; less so where its peak would be clipped."""
    peak = float(np.abs(samples).max(initial=0.0))
    factor = 10 ** (gain_db / 20)
    return samples * np.float32(min(factor, _LOUDEST / peak) if peak else 1.0)


def _levels(samples: Samples, rate_hz: int) -> NDArray[np.float64]:
    """Power of each whole frame, in dB of full scale."""
    frame = int(_FRAME_SECONDS * rate_hz)
    whole = samples[: len(samples) // frame * frame].reshape(-1, frame).astype(np.float64)
    power = np.square(whole).mean(1)
    levels: NDArray[np.float64] = 10 * np.log10(np.maximum(power, 10 ** (_SILENT_DBFS / 10)))
    return levels


def _speech(levels: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which frames are speech."""
    if not len(levels):
        return np.zeros(0, np.bool_)
    quiet, loud = np.percentile(levels, (_QUIET, _LOUD))
    threshold = np.clip(quiet + _ABOVE_ROOM_DB, loud - _FARTHEST_DB, loud - _NEAREST_DB)
    # In a clip without sound every frame is at the floor.
    speech: NDArray[np.bool_] = levels > max(float(threshold), _SILENT_DBFS)
    return speech
