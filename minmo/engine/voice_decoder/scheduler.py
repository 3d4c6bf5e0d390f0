"""Decides what is computed next, and for whom. It touches no tensor.

There are two kinds of steps: the voice token LM reads, and draws a speech token for everybody who
needs one; and token2wav makes a chunk of audio. Whoever's caller runs out of audio first decides
which kind comes next, and everybody who needs the same goes along. A caller that has no audio yet
runs out as soon as its text comes, so that first chunks go before later ones.

Nobody runs ahead without bound: who has much audio that was not taken, or many speech tokens that
are no audio yet, waits.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from minmo.engine.voice import Samples, SpeakingError, VoiceBusyError
from minmo.engine.voice_decoder.sequence import Chunk, Reading, SpeechSequence, State

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """How much at once.

    Attributes:
        slots: utterances that are computed at once.
        max_waiting: further utterances that may wait for a slot.
        max_wait_seconds: how long they may.
        idle_seconds: an utterance whose caller is silent for so long fails.
        max_ahead_seconds: audio that a caller may leave untaken before its utterance pauses.
        max_waiting_tokens: speech tokens that may wait for token2wav.
        rows: positions that the LM reads in one step.
        piece: of these, positions of one utterance.
        chunks: that token2wav makes in one step.
    """

    slots: int
    max_waiting: int
    max_wait_seconds: float
    idle_seconds: float
    max_ahead_seconds: float
    max_waiting_tokens: int
    rows: int
    piece: int
    chunks: int


@dataclass(frozen=True)
class Readings:
    """A step of the voice token LM."""

    items: tuple[Reading, ...]


@dataclass(frozen=True)
class Chunks:
    """A step of token2wav."""

    items: tuple[Chunk, ...]


@dataclass(frozen=True)
class Problem:
    """Why the model could not do its part for one utterance."""

    message: str


Step: TypeAlias = Readings | Chunks


class Scheduler:
    """The engine's only place of decisions; for one thread at a time.

    Args:
        limits: how much at once.
        clock: seconds.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self._limits = limits
        self._clock = clock
        self._free = list(range(limits.slots))[::-1]
        self._waiting: deque[SpeechSequence] = deque()
        self._running: list[SpeechSequence] = []

    @property
    def slots_in_use(self) -> int:
        """Utterances that are computed."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Utterances that wait for a slot."""
        return len(self._waiting)

    # --- utterances come and go

    def open(self, sequence: SpeechSequence) -> None:
        """Takes an utterance in.

        Raises:
            VoiceBusyError: too many wait already.
        """
        self._admit()
        if not self._free and len(self._waiting) >= self._limits.max_waiting:
            raise VoiceBusyError(
                f"the voice speaks {self._limits.slots} utterances and {self.waiting} wait, its "
                "limits; try again later"
            )
        self._waiting.append(sequence)
        self._admit()

    def close(self, sequence: SpeechSequence) -> None:
        """Nobody wants it any more; its slot is free from the next step on."""
        self._finish(sequence)

    def fail_all(self, message: str) -> None:
        """Fails everybody."""
        for sequence in [*self._running, *self._waiting]:
            self._fail(sequence, SpeakingError(message))

    def expire(self) -> list[SpeechSequence]:
        """Fails who has waited for too long, and whose caller is gone; returns them."""
        now, limits = self._clock(), self._limits
        late = [s for s in self._waiting if now - s.opened >= limits.max_wait_seconds]
        for sequence in late:
            self._fail(
                sequence,
                VoiceBusyError(
                    f"none of {limits.slots} slots became free within {limits.max_wait_seconds:g} "
                    "s; try again later"
                ),
            )
        idle = [
            s for s in self._running if not s.callers and now - s.last_used >= limits.idle_seconds
        ]
        for sequence in idle:
            message = f"nothing came from the caller for {limits.idle_seconds:g} s"
            self._fail(sequence, SpeakingError(message))
        return late + idle

    # --- steps

    def plan(self) -> Step | None:
        """What to compute now; None if there is nothing to do until somebody comes or goes."""
        self._admit()
        limits = self._limits
        speaking = [
            s for s in self._running if s.has_chunk and s.ahead_seconds < limits.max_ahead_seconds
        ]
        reading = [
            s
            for s in self._running
            if s.has_reading and s.waiting_tokens < limits.max_waiting_tokens
        ]
        if not speaking and not reading:
            return None
        speaking.sort(key=_due)
        reading.sort(key=_due)
        # Of one and the same utterance, audio is nearer to the caller than further tokens.
        if speaking and (not reading or speaking[0].due <= reading[0].due):
            return Chunks(tuple(s.next_chunk() for s in speaking[: limits.chunks]))
        return Readings(tuple(self._readings(reading)))

    def _readings(self, sequences: Sequence[SpeechSequence]) -> list[Reading]:
        readings, rows = [], 0
        for sequence in sequences:
            reading = sequence.next_reading(self._limits.piece)
            if rows + len(reading.inputs) <= self._limits.rows:
                readings.append(reading)
                rows += len(reading.inputs)
        return readings

    def finish_readings(self, step: Readings, drawn: Sequence[int | Problem | None]) -> None:
        """Takes over what the LM has read and drawn."""
        for reading, token in zip(step.items, drawn, strict=True):
            sequence = reading.sequence
            if sequence.state is not State.RUNNING:
                continue
            if isinstance(token, Problem):
                self._fail(sequence, SpeakingError(token.message))
                continue
            sequence.finish_reading(reading, token)
            if sequence.first_chunk_ready is None and sequence.has_chunk:
                sequence.first_chunk_ready = self._clock()
            if sequence.ran_away:
                log.warning("speech was ended after %d tokens: no end came", sequence.spoken)
            self._finish_if_silent(sequence)

    def finish_chunks(self, step: Chunks, made: Sequence[Samples | Problem]) -> None:
        """Takes over the audio that token2wav has made."""
        now = self._clock()
        for chunk, samples in zip(step.items, made, strict=True):
            sequence = chunk.sequence
            if sequence.state is not State.RUNNING:
                continue
            if isinstance(samples, Problem):
                self._fail(sequence, SpeakingError(samples.message))
                continue
            sequence.finish_chunk(chunk, samples, now)
            if chunk.last:
                self._finish(sequence)

    def ended(self, sequence: SpeechSequence) -> None:
        """The text of an utterance has ended."""
        self._finish_if_silent(sequence)

    # --- within

    def _admit(self) -> None:
        while self._free and self._waiting:
            sequence = self._waiting.popleft()
            sequence.slot = self._free.pop()
            sequence.state = State.RUNNING
            self._running.append(sequence)
            self._finish_if_silent(sequence)

    def _finish_if_silent(self, sequence: SpeechSequence) -> None:
        if sequence.state is State.RUNNING and sequence.is_silent:
            sequence.finish_silently()
            self._finish(sequence)

    def _fail(self, sequence: SpeechSequence, error: Exception) -> None:
        sequence.error = error
        sequence.pieces.clear()
        self._finish(sequence)

    def _finish(self, sequence: SpeechSequence) -> None:
        if sequence.state is State.RUNNING:
            self._running.remove(sequence)
            self._free.append(sequence.slot)
        elif sequence.state is State.WAITING:
            self._waiting.remove(sequence)
        sequence.state = State.FINISHED


def _due(sequence: SpeechSequence) -> float:
    return sequence.due
