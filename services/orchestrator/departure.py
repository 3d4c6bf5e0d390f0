"""How a conversation leaves a process that stops: between turns, with what the next one needs."""

from __future__ import annotations

import time
from collections import deque

from minmo.rpc.health import Readiness
from minmo.v1.conversation_pb2 import Moving
from services.orchestrator.turn_taking import Activity, milliseconds, samples

PATIENCE_SECONDS = 3.0
"""How long a conversation that is at rest may wait until the LLM has read everything."""
_PREROLL_MS = 500.0
"""Audio that was heard and is heard again: speech is noticed later than it begins."""
_POSTROLL_MS = 100.0
_KEPT = samples(5000)


class Departure:
    """Knows what was dealt with of the client's messages, and when it is time to go.

    Args:
        readiness: of the process.
    """

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness
        self._audio: deque[tuple[int, int]] = deque()
        self._next_audio = self._position = self._dropped_until = 0
        self._requests = 0
        self._since: float | None = None

    @property
    def is_due(self) -> bool:
        """Whether the process stops."""
        if self._since is None and self._readiness.draining:
            self._since = time.monotonic()
        return self._since is not None

    @property
    def is_late(self) -> bool:
        """Whether what would only be of use is not waited for any more."""
        return self._since is not None and time.monotonic() - self._since > PATIENCE_SECONDS

    def took_audio(self, sequence: int, end: int) -> None:
        """A message of audio was taken, which ends at `end` (samples at 16 kHz)."""
        self._audio.append((sequence, end))
        self._next_audio, self._position = sequence + 1, end
        while self._audio[0][1] < end - _KEPT:
            _, self._dropped_until = self._audio.popleft()

    def took_request(self) -> None:
        """A message other than audio was taken, and will be dealt with."""
        self._requests += 1

    def moving(self, heard: Activity, input_start: int) -> Moving:
        """What the client is told.

        Args:
            heard: the latest voice activity; there is no speech that was not dealt with.
            input_start: audio before it belongs to a turn that has ended.
        """
        begin = max(
            heard.end - samples(_PREROLL_MS),
            min(heard.speech_end + samples(_POSTROLL_MS), heard.end),
            input_start,
        )
        sequence, start = self._next_audio, self._position
        for place, (number, end) in enumerate(self._audio):
            if end > begin:
                sequence = number
                start = self._audio[place - 1][1] if place else self._dropped_until
                break
        return Moving(
            audio_from=sequence,
            audio_from_ms=round(milliseconds(start)),
            requests_from=self._requests,
        )
