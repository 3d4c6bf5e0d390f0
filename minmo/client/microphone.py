"""A microphone that plays a recording, and stays open afterwards."""

from __future__ import annotations

import asyncio
import math
import time
from bisect import bisect_left

import numpy as np

from minmo.client.conversation import Conversation
from minmo.client.recording import Recording

FRAME_SECONDS = 0.02
FAST = math.inf
"""Speed of a microphone that sends a recording as fast as a server can be trusted to hear it."""

_FAST_SPEED = 10.0
_FAST_SILENCE_SECONDS = 1.0


class Microphone:
    """Sends a recording in frames of 20 ms, then silence until it is cancelled.

    Args:
        conversation: gets the audio, at its input rate.
        recording: what to send.
        speed: how much faster than real time; `FAST` sends the recording and one second of
            silence at ten times real time, and further silence in real time.
    """

    def __init__(self, conversation: Conversation, recording: Recording, speed: float) -> None:
        self._conversation = conversation
        self._recording = recording.at_rate(conversation.input_rate_hz)
        self._speed = speed
        self._ends_ms: list[float] = []
        self._sent_at: list[float] = []
        self.position_ms = 0.0
        """Audio sent so far, from the start of the recording."""
        self.recording_sent = asyncio.Event()
        """Set once the whole recording was sent."""

    async def run(self) -> None:
        """Sends until cancelled."""
        rate = self._recording.rate_hz
        samples = self._recording.samples
        due = time.monotonic()
        frame = 0
        while True:
            start, end = (round(n * FRAME_SECONDS * rate) for n in (frame, frame + 1))
            piece = samples[start:end]
            if len(piece) < end - start:
                piece = np.pad(piece, (0, end - start - len(piece)))
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await self._conversation.send_audio(piece)
            self.position_ms = end * 1000 / rate
            if not self.recording_sent.is_set():
                self._ends_ms.append(self.position_ms)
                self._sent_at.append(time.monotonic())
                if end >= len(samples):
                    self.recording_sent.set()
            frame += 1
            due += FRAME_SECONDS / self._speed_at(start / rate)

    def sent_at(self, position_ms: float) -> float | None:
        """When the recording up to a position was sent, on the monotonic clock; None if not yet."""
        index = bisect_left(self._ends_ms, position_ms)
        return self._sent_at[index] if index < len(self._sent_at) else None

    def _speed_at(self, seconds: float) -> float:
        if not math.isinf(self._speed):
            return self._speed
        over = seconds - self._recording.duration_ms / 1000
        return _FAST_SPEED if over < _FAST_SILENCE_SECONDS else 1.0
