"""Voice activity: whether somebody speaks, and from where to where.

`SileroVad` gives a probability for every 32 ms; `VoiceActivityDetector` makes stretches of speech
of them.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from minmo.audio.pcm import Samples
from minmo.audio.resample import LISTENING_RATE_HZ

FRAME_SAMPLES = 512
"""Samples at 16 kHz of one frame: 32 ms."""

_CONTEXT_SAMPLES = 64
_STATE_SHAPE = (2, 1, 128)

SpeechProbability = Callable[[Samples], float]
"""The next frame of a stream, `[512]` at 16 kHz, to the probability of speech in it."""


class SileroVad:
    """The Silero model; one for all streams of a process, each with a state of its own."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        # Threads that spin while they wait would take the cores of the models.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )

    def stream(self) -> SpeechProbability:
        """Starts a stream: gives a function that is to be called with its frames in order."""
        state: NDArray[np.float32] = np.zeros(_STATE_SHAPE, np.float32)
        window = np.zeros((1, _CONTEXT_SAMPLES + FRAME_SAMPLES), np.float32)
        rate = np.array(LISTENING_RATE_HZ, np.int64)

        def probability(frame: Samples) -> float:
            nonlocal state
            window[0, :_CONTEXT_SAMPLES] = window[0, -_CONTEXT_SAMPLES:]
            window[0, _CONTEXT_SAMPLES:] = frame
            output, state = self._session.run(None, {"input": window, "state": state, "sr": rate})
            return float(output[0, 0])

        return probability


@dataclass(frozen=True)
class VadThresholds:
    """When speech begins and ends.

    Attributes:
        start: probability from which a frame may begin speech.
        stop: probability below which a frame does not continue it; below `start`.
        min_speech_frames: frames in a row that it takes to begin: 3 are 96 ms.
        hangover_frames: frames below `stop` in a row after which nobody speaks: 3 are 96 ms.
    """

    start: float = 0.5
    stop: float = 0.35
    min_speech_frames: int = 3
    hangover_frames: int = 3

    @classmethod
    def starting_at(cls, start: float) -> VadThresholds:
        """The thresholds around a starting probability."""
        return cls(start=start, stop=max(start - 0.15, start / 2))


@dataclass(frozen=True)
class Activity:
    """What is known after a chunk; positions in samples at 16 kHz.

    Attributes:
        end_sample: samples heard so far.
        probability: highest probability of the frames that the chunk completed; that of the
            latest frame where it completed none.
        speaking: whether somebody speaks.
        speech_start_sample: start of the latest stretch of speech; 0 before any.
        speech_end_sample: its end so far; 0 before any.
    """

    end_sample: int
    probability: float
    speaking: bool
    speech_start_sample: int
    speech_end_sample: int


class VoiceActivityDetector:
    """Stretches of speech in a stream.

    Speech begins with `min_speech_frames` frames, the first at `start` or above and the others at
    `stop` or above, and goes on until `hangover_frames` in a row are below `stop`. It starts where
    the first of them starts and ends where the last at `stop` or above ends, so neither of the two
    waits is part of it.

    Args:
        probability: of the frames, in order.
        thresholds: when speech begins and ends.
        start_sample: position of the first sample.
        history_samples: how far back `highest_probability` knows.
    """

    def __init__(
        self,
        probability: SpeechProbability,
        thresholds: VadThresholds | None = None,
        start_sample: int = 0,
        history_samples: int = 0,
    ) -> None:
        self._probability = probability
        self._thresholds = thresholds or VadThresholds()
        self._pending: Samples = np.zeros(0, np.float32)
        self._frame_start = start_sample
        self._latest = 0.0
        self._history: deque[float] = deque(maxlen=-(-history_samples // FRAME_SAMPLES))
        self._speaking = False
        self._candidate_start = 0
        self._candidate_frames = 0
        self._silent_frames = 0
        self._speech_start = 0
        self._speech_end = 0

    def process(self, samples: Samples) -> Activity:
        """Takes the next samples, `[samples]` at 16 kHz, any number."""
        pending = np.concatenate((self._pending, samples))
        whole = len(pending) - len(pending) % FRAME_SAMPLES
        highest = 0.0 if whole else self._latest
        for frame in pending[:whole].reshape(-1, FRAME_SAMPLES):
            self._latest = self._probability(frame)
            highest = max(highest, self._latest)
            self._history.append(self._latest)
            self._advance(self._latest)
        self._pending = pending[whole:]
        return Activity(
            end_sample=self._frame_start + len(self._pending),
            probability=highest,
            speaking=self._speaking,
            speech_start_sample=self._speech_start,
            speech_end_sample=self._speech_end,
        )

    def highest_probability(self, start_sample: int, end_sample: int) -> float:
        """Highest probability of the frames that touch a stretch of the history; 0 without any."""
        oldest = self._frame_start - len(self._history) * FRAME_SAMPLES
        first = max(0, (start_sample - oldest) // FRAME_SAMPLES)
        last = max(0, -(-(end_sample - oldest) // FRAME_SAMPLES))
        return max(itertools.islice(self._history, first, last), default=0.0)

    def _advance(self, probability: float) -> None:
        frame_start = self._frame_start
        self._frame_start = frame_end = frame_start + FRAME_SAMPLES
        limits = self._thresholds
        if self._speaking:
            if probability >= limits.stop:
                self._silent_frames = 0
                self._speech_end = frame_end
                return
            self._silent_frames += 1
            if self._silent_frames >= limits.hangover_frames:
                self._speaking = False
                self._candidate_frames = 0
            return
        if self._candidate_frames == 0 and probability >= limits.start:
            self._candidate_start = frame_start
            self._candidate_frames = 1
        elif self._candidate_frames and probability >= limits.stop:
            self._candidate_frames += 1
        else:
            self._candidate_frames = 0
        if self._candidate_frames >= limits.min_speech_frames:
            self._speaking = True
            self._silent_frames = 0
            self._speech_start = self._candidate_start
            self._speech_end = frame_end
