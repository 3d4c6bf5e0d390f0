"""Counts what was decided about who speaks, and which of it turned out to be wrong."""

from __future__ import annotations

from minmo.rpc import metrics
from services.orchestrator.turn_taking import FloorEvent, Happened, samples
from services.orchestrator.user_turn import UserTurn

REGRET_MS = 1000.0
"""A user who speaks again within it has undone the decision before."""


class Decisions:
    """Follows the floor of one conversation. Positions are samples at 16 kHz."""

    def __init__(self) -> None:
        self._paused = False
        self._answered_at: int | None = None
        self._ignored_at: int | None = None

    def note(self, event: FloorEvent, position: int) -> None:
        """Counts what an event of the floor decides, and what it undoes.

        Args:
            event: what happened.
            position: up to where the user's audio was heard then.
        """
        match event.what:
            case Happened.SPEECH_STARTED if self._paused:
                self._paused = False
                metrics.count_decision("wait")
            case Happened.PAUSE:
                self._paused = True
            case Happened.TURN_ENDED:
                self._answer("answer_now", position)
            case Happened.TURN_TOO_LONG:
                self._answer("answer_at_limit", None)
            case Happened.BARGE_IN:
                metrics.count_decision("stop")
                self._stop(event.start)
            case Happened.BACK_CHANNEL:
                metrics.count_decision("back_channel")
                self._ignored_at = position

    def client_ended(self) -> None:
        """The client has ended the user's turn."""
        self._answer("answer_for_client", None)

    def _answer(self, decision: metrics.Decision, position: int | None) -> None:
        metrics.count_decision(decision)
        self._paused = False
        self._answered_at, self._ignored_at = position, None

    def _stop(self, start: int) -> None:
        """The user has taken the floor with speech that began at `start`."""
        if _soon(self._answered_at, start):
            metrics.count_regret("answered_too_early")
        elif _soon(self._ignored_at, start):
            metrics.count_regret("ignored_too_early")
        self._answered_at = self._ignored_at = None


def regret_wordless(turn: UserTurn) -> None:
    """What was taken for a turn of the user had no words."""
    if turn.took_floor:
        metrics.count_regret("stopped_for_nothing")
    elif not turn.ended_by_client:
        metrics.count_regret("turn_without_words")


def _soon(decided: int | None, start: int) -> bool:
    return decided is not None and start - decided <= samples(REGRET_MS)
