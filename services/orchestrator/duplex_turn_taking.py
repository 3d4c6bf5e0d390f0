"""Who has the floor, told by the full-duplex predictor; silence decides where it cannot be had."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minmo.model.operating_points import OperatingPoint, point_at
from services.orchestrator.turn_taking import Predicted, SilenceTurnTaking

LINGERS_MS = 600.0
"""Silence in which speech over an answer may still turn out to be an interruption: a short one is
understood when it is over (paper, section 3.4: T ~ N(0.6, 0.4²) s after its start)."""
_DRAFT_SHARE = 0.5
"""Share of the threshold from which on an answer is worth beginning."""
_USUAL_EAGERNESS = 0.5


@dataclass(frozen=True)
class DuplexTurnTaking:
    """Answers and stops when the predictor says so.

    Attributes:
        thresholds: probabilities from which on the floor is taken.
        longest_silence_ms: silence after which the user's turn is answered anyhow.
        without: decides where the predictor has not answered in time.
        late_ms: audio without an answer of the predictor after which that is so.
        lingers_ms: see `TurnTaking`.
        hears_the_end: see `TurnTaking`.
    """

    thresholds: OperatingPoint
    longest_silence_ms: float
    without: SilenceTurnTaking
    late_ms: float
    lingers_ms: float = LINGERS_MS
    hears_the_end: bool = True

    @classmethod
    def of(
        cls,
        points: Sequence[OperatingPoint],
        eagerness: float,
        *,
        longest_silence_ms: float,
        without: SilenceTurnTaking,
        late_ms: float,
    ) -> DuplexTurnTaking:
        """The decisions of a session.

        Args:
            points: of the predictor, by rising eagerness.
            eagerness: 0 leaves it to the server, near 0 is patient, 1 eager.
            longest_silence_ms: at least that of `without`.
            without: decides where the predictor has not answered in time.
            late_ms: audio without an answer of the predictor after which that is so.
        """
        thresholds = point_at(points, eagerness or _USUAL_EAGERNESS)
        longest_silence_ms = max(longest_silence_ms, without.end_of_turn_ms)
        return cls(thresholds, longest_silence_ms, without, late_ms)

    def answer_now(self, silence_ms: float, predicted: Predicted) -> bool:
        """True once the predictor is sure enough, or the silence too long."""
        if silence_ms >= self.longest_silence_ms:
            return True
        if predicted.age_ms > self.late_ms:
            return self.without.answer_now(silence_ms, predicted)
        latest = predicted.latest
        return latest is not None and latest.assistant_turn >= self.thresholds.assistant_turn

    def may_answer(self, predicted: Predicted) -> bool:
        """True from half of the threshold on."""
        latest = predicted.latest
        likely = self.thresholds.assistant_turn * _DRAFT_SHARE
        return latest is not None and latest.assistant_turn >= likely

    def stop_now(self, overlap_ms: float, predicted: Predicted) -> bool:
        """True once the predictor is sure enough."""
        if self.without.barge_in_ms is None:
            return False
        if predicted.age_ms > self.late_ms:
            return self.without.stop_now(overlap_ms, predicted)
        latest = predicted.latest
        return latest is not None and latest.user_turn >= self.thresholds.user_turn
