"""Where the time of a turn went, from the user's last word to the first audio."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from minmo.rpc import metrics
from minmo.rpc.metrics import Hop
from minmo.v1 import conversation_pb2


@dataclass
class Waterfall:
    """Times of a turn's hops, in monotonic seconds.

    Attributes:
        speech_end: when the last sample of the user's speech arrived at the server.
        first_audio: when the first sample of the answer left it; None before that.
    """

    speech_end: float
    first_audio: float | None = None
    _hops: dict[Hop, tuple[float, float]] = field(default_factory=dict)

    def add(self, hop: Hop, began: float, ended: float | None = None) -> None:
        """Notes a hop; one that is noted again replaces the earlier one (it was repeated)."""
        self._hops[hop] = (began, time.monotonic() if ended is None else ended)

    def ended(self, hop: Hop) -> float | None:
        """When a hop ended, if it has."""
        return self._hops[hop][1] if hop in self._hops else None

    def publish(self) -> None:
        """Hands the hops to Prometheus."""
        for hop, (began, ended) in self._hops.items():
            metrics.observe_hop(hop, ended - began)
        if self.first_audio is not None:
            metrics.FIRST_AUDIO.observe(max(0.0, self.first_audio - self.speech_end))

    @property
    def first_audio_ms(self) -> float:
        """From the end of speech to the first audio, in milliseconds; 0 if there was none."""
        if self.first_audio is None:
            return 0.0
        return (self.first_audio - self.speech_end) * 1000

    def spans(self) -> list[conversation_pb2.Span]:
        """The hops as the client gets them, by their beginning."""
        ordered = sorted(self._hops.items(), key=lambda entry: entry[1])
        return [
            conversation_pb2.Span(
                hop=hop,
                start_ms=(began - self.speech_end) * 1000,
                duration_ms=(ended - began) * 1000,
            )
            for hop, (began, ended) in ordered
        ]
