"""When the audio of an answer came, and what a loudspeaker could make of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

RATE_HZ = 24_000
"""Rate of all audio in measurements of conversations: that of the Realtime protocol."""
FRAME_SECONDS = 0.02
"""What microphones send at a time, and what late audio is counted in."""
LATE_MS = 100.0
"""A silence within an answer that is heard as one, and so a frame that came too late."""
# Pieces follow one another to the sample; what is shorter than this is rounding.
_ROUNDING_SECONDS = 1e-6


@dataclass(frozen=True)
class Gap:
    """A silence within an answer: what was to be played had not come.

    Attributes:
        at_seconds: when it began, on the monotonic clock.
        seconds: how long it was.
    """

    at_seconds: float
    seconds: float

    @property
    def frames(self) -> int:
        """Frames of 20 ms that came after they had to be played."""
        return math.ceil(round(self.seconds / FRAME_SECONDS, 6))


@dataclass
class Arrived:
    """Audio of one answer, as it came.

    The loudspeaker begins with the first piece, falls silent when it has nothing left, and goes on
    with what comes next: nothing is skipped.

    Attributes:
        pieces: of each message with audio, its time on the monotonic clock, and how many samples.
        stopped_at: when no more of it was to be played; None if it may be played to its end.
    """

    pieces: list[tuple[float, int]] = field(default_factory=list)
    stopped_at: float | None = None

    @property
    def samples(self) -> int:
        """Samples that came."""
        return sum(count for _, count in self.pieces)

    @property
    def first_at(self) -> float | None:
        """When the first of it came."""
        return self.pieces[0][0] if self.pieces else None

    @property
    def ends_at(self) -> float:
        """When all that came so far will have been played; minus infinity if nothing came."""
        return max(
            (start + count / RATE_HZ for start, count in self._played_from()), default=-math.inf
        )

    def gaps(self) -> list[Gap]:
        """The silences within the answer, up to where it was stopped."""
        found = []
        until = None
        for start, count in self._played_from():
            if until is not None and start - until > _ROUNDING_SECONDS:
                heard_until = start if self.stopped_at is None else min(start, self.stopped_at)
                if heard_until > until:
                    found.append(Gap(until, heard_until - until))
            until = start + count / RATE_HZ
        return found

    def stutter_ms(self) -> float:
        """The longest silence within the answer."""
        return 1000 * max((gap.seconds for gap in self.gaps()), default=0.0)

    def late_frames(self) -> int:
        """Frames of 20 ms that came after they had to be played."""
        return sum(gap.frames for gap in self.gaps())

    def played(self, now: float) -> int:
        """Samples that were played by `now`, or until it was stopped."""
        until = now if self.stopped_at is None else min(now, self.stopped_at)
        return sum(
            min(count, max(0, int((until - start) * RATE_HZ)))
            for start, count in self._played_from()
        )

    def _played_from(self) -> list[tuple[float, int]]:
        """When each piece is played, and how many samples it has."""
        played = []
        busy_until = -math.inf
        for at, count in self.pieces:
            start = max(at, busy_until)
            played.append((start, count))
            busy_until = start + count / RATE_HZ
        return played
