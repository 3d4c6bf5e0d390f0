"""Whether an answer's audio comes in time: for the metrics."""

from __future__ import annotations

from minmo.rpc import metrics


class Delivery:
    """Follows what is sent of one utterance, and what the client says that it has played.

    No clock: who calls says what time it is, in seconds that never go back.

    Args:
        rate_hz: of the audio.
    """

    def __init__(self, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self._anchor: tuple[float, int] | None = None
        self._ran_out: float | None = None
        self._end = 0

    def sends(self, first_sample: int, count: int, now: float) -> None:
        """Audio is sent. Counts what of it had to be played before, by a client that plays an
        utterance from its first sample on."""
        metrics.AUDIO_OUT.inc(metrics.frames(count / self._rate_hz))
        if self._anchor is None:
            self._anchor = (now, first_sample)
        began, played = self._anchor
        late = now - began - (first_sample - played) / self._rate_hz
        if late > 0:
            metrics.AUDIO_OUT_LATE.inc(metrics.frames(min(late, count / self._rate_hz)))
            metrics.AUDIO_OUT_GAP.observe(late)
            # What follows is played behind it.
            self._anchor = (now, first_sample)
        if self._ran_out is not None:
            metrics.STALLS.inc()
            metrics.STALL_SECONDS.inc(now - self._ran_out)
            self._ran_out = None
        self._end = first_sample + count

    def played(self, samples: int, now: float) -> None:
        """The client says how far it has played: it has run out if that is all that it got."""
        if self._ran_out is None and 0 < self._end <= samples:
            self._ran_out = now
