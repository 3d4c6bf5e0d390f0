"""A recording to speak with, as a microphone would have given it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from minmo.audio.pcm import SAMPLE_RATES_HZ, AudioError, Samples, read_file
from minmo.audio.resample import LISTENING_RATE_HZ, resample
from minmo.client.errors import RecordingError

_FRAME_MS = 10
# Below -60 dB of full scale a recording holds nothing, and below -35 dB of its own loudest frame
# there is room, not speech.
_SILENCE = 1e-3
_SPEECH_BELOW_PEAK = 10 ** (-35 / 20)


@dataclass(frozen=True)
class Recording:
    """Sound from a file.

    Attributes:
        path: where it is from.
        samples: float32 [samples], one channel.
        rate_hz: a rate that the server takes.
    """

    path: Path
    samples: Samples
    rate_hz: int

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a file of any rate and number of channels.

        Raises:
            RecordingError: it is not there, not audio, or empty.
        """
        try:
            samples, rate_hz = read_file(path)
        except (AudioError, OSError) as error:
            raise RecordingError(str(error)) from None
        if len(samples) == 0:
            raise RecordingError(f"{path} holds no sound at all: it has 0 samples")
        if rate_hz not in SAMPLE_RATES_HZ:
            samples, rate_hz = resample(samples, rate_hz, LISTENING_RATE_HZ), LISTENING_RATE_HZ
        return cls(path, samples, rate_hz)

    @property
    def duration_ms(self) -> float:
        """Its length in milliseconds."""
        return len(self.samples) * 1000 / self.rate_hz

    @property
    def silent(self) -> bool:
        """Whether nothing can be heard in it (below -60 dB of full scale throughout)."""
        return bool(np.abs(self.samples).max() < _SILENCE)

    def at_rate(self, rate_hz: int) -> Recording:
        """The same at another rate."""
        if rate_hz == self.rate_hz:
            return self
        return Recording(self.path, resample(self.samples, self.rate_hz, rate_hz), rate_hz)

    def speech_end_ms(self, before_ms: float | None = None) -> float:
        """Where the last sound ends that is loud enough to be speech, in milliseconds.

        Args:
            before_ms: looks only before here.
        """
        frame = self.rate_hz * _FRAME_MS // 1000
        count = len(self.samples) // frame
        if before_ms is not None:
            count = min(count, max(1, int(before_ms / _FRAME_MS)))
        if count == 0:
            return self.duration_ms
        frames = self.samples[: count * frame].reshape(count, frame)
        loudness = np.sqrt(np.mean(frames**2, axis=1))
        loud = np.flatnonzero(loudness >= loudness.max() * _SPEECH_BELOW_PEAK)
        return float((loud[-1] + 1) * _FRAME_MS)
