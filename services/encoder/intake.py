"""What happens to every chunk of audio: bytes in, voice activity out, samples kept."""

from __future__ import annotations

import numpy as np

from minmo.audio.pcm import PcmFormat, Samples
from minmo.audio.resample import LISTENING_RATE_HZ, StreamResampler
from minmo.audio.vad import Activity, SpeechProbability, VadThresholds, VoiceActivityDetector
from services.encoder.audio_buffer import AudioBuffer


class AudioIntake:
    """Decodes, resamples, detects voice activity, and keeps the latest audio at 16 kHz.

    Args:
        audio_format: of the chunks.
        start_sample: position of the first sample, at 16 kHz.
        probability: of speech, of a new stream.
        thresholds: when speech begins and ends.
        buffer_seconds: audio that is kept.
    """

    def __init__(
        self,
        audio_format: PcmFormat,
        start_sample: int,
        probability: SpeechProbability,
        thresholds: VadThresholds,
        buffer_seconds: float,
    ) -> None:
        capacity = int(buffer_seconds * LISTENING_RATE_HZ)
        self._format = audio_format
        self._start = start_sample
        self._resampler = StreamResampler(audio_format.sample_rate_hz)
        self._thresholds = thresholds
        self._detector = VoiceActivityDetector(probability, thresholds, start_sample, capacity)
        self._buffer = AudioBuffer(capacity, start_sample)

    @property
    def held_start(self) -> int:
        """The oldest sample that is kept."""
        return self._buffer.start

    @property
    def end(self) -> int:
        """One past the latest sample that left the resampler."""
        return self._buffer.end

    @property
    def sent_end(self) -> int:
        """One past the latest sample that was sent: the resampler may still hold some."""
        return self._start + self._resampler.samples_due

    def hear(self, data: bytes) -> Activity:
        """Takes the next chunk.

        Raises:
            AudioError: it ends within a sample, or holds NaN or infinity.
        """
        samples = self._resampler.process(self._format.decode(data))
        self._buffer.append(samples)
        return self._detector.process(samples)

    def read(self, start: int, end: int) -> Samples:
        """A copy of what was sent between two positions; silence beyond what was sent.

        `start` is not before `held_start`.
        """
        samples = self._buffer.read(min(start, self.end), min(end, self.end))
        if end > self.end:
            ahead = self._resampler.preview()[max(0, start - self.end) : end - self.end]
            samples = np.concatenate((samples, ahead))
        return np.pad(samples, (0, end - start - len(samples)))

    def is_silent(self, start: int, end: int) -> bool:
        """Whether nothing between two positions could be speech."""
        return self._detector.highest_probability(start, end) < self._thresholds.stop
