"""A loudspeaker that exists only as a clock: it knows what has been heard of each utterance."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from minmo.audio.pcm import Samples

KEPT_UTTERANCES = 16
"""Utterances whose sound is kept after they were played."""


@dataclass(frozen=True)
class Playback:
    """How far an utterance has been played."""

    utterance_id: str
    played_samples: int
    finished: bool


@dataclass
class _Utterance:
    utterance_id: str
    pieces: list[Samples] = field(default_factory=list)
    received: int = 0
    played: float = 0.0
    last_piece_came: bool = False
    stopped: bool = False
    reported: Playback | None = None

    @property
    def finished(self) -> bool:
        return self.stopped or (self.last_piece_came and self.played >= self.received)

    @property
    def playback(self) -> Playback:
        return Playback(self.utterance_id, int(self.played), self.finished)


class Speaker:
    """Plays utterances one after the other, as fast as time passes; sound is kept, not made.

    When audio comes too late it falls silent and goes on when there is more, as a real one does.

    Args:
        rate_hz: samples that a second takes.
        speed: how much faster than real time it plays; infinite plays at once what comes.
    """

    def __init__(self, rate_hz: int, speed: float = 1.0) -> None:
        self._samples_per_second = rate_hz * speed
        self._utterances: dict[str, _Utterance] = {}
        self._now = -math.inf

    def receive(
        self,
        utterance_id: str,
        first_sample: int,
        samples: Samples,
        *,
        final: bool,
        now_seconds: float,
    ) -> None:
        """Takes audio to play.

        Args:
            first_sample: position in the utterance; a gap is played as silence, what is there
                already is not played again.
            samples: float32 [samples].
            final: it is the utterance's last.
            now_seconds: a clock that never goes back.
        """
        self.advance(now_seconds)
        utterance = self._utterance(utterance_id)
        if utterance.stopped:
            return
        gap = first_sample - utterance.received
        if gap > 0:
            self._append(utterance, np.zeros(gap, dtype=np.float32))
        self._append(utterance, samples[max(0, -gap) :])
        utterance.last_piece_came = utterance.last_piece_came or final
        self.advance(now_seconds)

    def stop(self, utterance_id: str, now_seconds: float) -> None:
        """Plays no more of an utterance."""
        self.advance(now_seconds)
        self._utterance(utterance_id).stopped = True

    def advance(self, now_seconds: float) -> None:
        """Plays on until now."""
        elapsed = max(0.0, now_seconds - self._now)
        budget = math.inf
        if math.isfinite(self._samples_per_second):
            budget = elapsed * self._samples_per_second if math.isfinite(elapsed) else 0.0
        self._now = max(self._now, now_seconds)
        for utterance in self._utterances.values():
            if utterance.finished:
                continue
            step = min(budget, utterance.received - utterance.played)
            utterance.played += step
            budget -= step
            if not utterance.finished:
                return

    def news(self, now_seconds: float) -> list[Playback]:
        """What has changed since it was last asked for."""
        self.advance(now_seconds)
        changed = []
        for utterance in self._utterances.values():
            playback = utterance.playback
            if playback != utterance.reported:
                utterance.reported = playback
                changed.append(playback)
        return changed

    def heard(self, utterance_id: str) -> Samples:
        """What has been played of an utterance; float32 [samples]."""
        utterance = self._utterances.get(utterance_id)
        if utterance is None or not utterance.pieces:
            return np.zeros(0, dtype=np.float32)
        return np.concatenate(utterance.pieces)[: int(utterance.played)]

    @property
    def playing(self) -> bool:
        """Whether there was something left to play when it was last advanced."""
        return any(
            utterance.played < utterance.received and not utterance.stopped
            for utterance in self._utterances.values()
        )

    def _utterance(self, utterance_id: str) -> _Utterance:
        if utterance_id not in self._utterances:
            self._utterances[utterance_id] = _Utterance(utterance_id)
            over = [one for one in self._utterances.values() if one.finished][:-KEPT_UTTERANCES]
            for utterance in over:
                del self._utterances[utterance.utterance_id]
        return self._utterances[utterance_id]

    @staticmethod
    def _append(utterance: _Utterance, samples: Samples) -> None:
        if len(samples):
            utterance.pieces.append(samples)
            utterance.received += len(samples)
