"""Where the time of a turn went, from the user's last word to the first audio."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from minmo.rpc import metrics, tracing
from minmo.rpc.metrics import Stage
from minmo.v1 import conversation_pb2


@dataclass
class Waterfall:
    """Times of a turn's stages, in monotonic seconds.

    Attributes:
        speech_end: when the last sample of the user's speech arrived at the server.
        first_audio: when the first sample of the answer left it; None before that.
    """

    speech_end: float
    first_audio: float | None = None
    _stages: dict[Stage, tuple[float, float]] = field(default_factory=dict)

    def add(self, stage: Stage, began: float, ended: float | None = None) -> None:
        """Notes a stage; one that is noted again replaces the earlier one (it was repeated)."""
        self._stages[stage] = (began, time.monotonic() if ended is None else ended)

    def ended(self, stage: Stage) -> float | None:
        """When a stage ended, if it has."""
        return self._stages[stage][1] if stage in self._stages else None

    def trace(self, trace: tracing.Span) -> None:
        """Hands the stages to the turn's trace."""
        for stage, (began, ended) in self._stages.items():
            tracing.begin(stage, parent=trace, began=began).end(ended)

    def publish(self) -> None:
        """Hands the stages to Prometheus."""
        for stage, (began, ended) in self._stages.items():
            metrics.observe_stage(stage, ended - began)
        if self.first_audio is not None:
            metrics.TURN_FIRST_AUDIO.observe(max(0.0, self.first_audio - self.speech_end))

    @property
    def first_audio_ms(self) -> float:
        """From the end of speech to the first audio, in milliseconds; 0 if there was none."""
        if self.first_audio is None:
            return 0.0
        return (self.first_audio - self.speech_end) * 1000

    def spans(self) -> list[conversation_pb2.Span]:
        """The stages as the client gets them, by their beginning."""
        ordered = sorted(self._stages.items(), key=lambda entry: entry[1])
        return [
            conversation_pb2.Span(
                hop=stage,
                start_ms=(began - self.speech_end) * 1000,
                duration_ms=(ended - began) * 1000,
            )
            for stage, (began, ended) in ordered
        ]
