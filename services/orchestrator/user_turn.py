"""The user's turn while it goes on, and the words in it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from minmo.rpc import tracing
from services.orchestrator.listener import Listener, Transcript
from services.orchestrator.turn_taking import milliseconds, samples

PREROLL_MS = 250.0
"""Audio before the onset that is listened to as well: detectors are late."""
POSTROLL_MS = 120.0
"""Audio after the last speech that is listened to as well."""
_PIECE_MS = 15_000.0
_LONGEST_PIECE_MS = 29_000.0
_MAX_SETTLED_CHARACTERS = 4000


@dataclass
class Speech:
    """A stretch of the user's speech that the LLM reads as embeddings.

    Attributes:
        segment_id: of its segment.
        text: what is heard in it so far.
        end: all up to here, in samples at 16 kHz, has been heard.
    """

    segment_id: int
    text: str = ""
    end: int = 0


@dataclass
class UserTurn:
    """A turn of the user that has not been answered yet.

    Its words are recognised (`look`), or those of its speech, where the LLM reads embeddings.

    Attributes:
        start: where it began, in samples at 16 kHz.
        carried: words of a turn before, whose answer was stopped before anything was heard of it.
        checkpoint: how much the LLM had read before this turn; None where an answer was under way.
        earliest: audio before it is of another turn.
        latest: audio behind it is of another turn; None while the turn goes on.
        speech: what the LLM reads of it as embeddings, one after the other.
        took_floor: whether it began with an answer being stopped.
        ended_by_client: whether the client said where it ends.
        trace: what is done for it.
        recognise_began: when the latest recognition began (monotonic seconds).
        recognise_ended: when it ended.
    """

    start: int
    carried: str = ""
    checkpoint: int | None = 0
    earliest: int = 0
    latest: int | None = None
    speech: list[Speech] = field(default_factory=list)
    took_floor: bool = False
    ended_by_client: bool = False
    trace: tracing.Span = tracing.NONE
    recognise_began: float = 0.0
    recognise_ended: float = 0.0
    _settled: list[str] = field(default_factory=list)
    _settled_until: int = 0
    _end: int = -1
    _task: asyncio.Task[Transcript] | None = None

    def look(self, listener: Listener, end: int, on_words: Callable[[str], None]) -> None:
        """Begins to recognise what was said up to `end`, unless that is under way already.

        Long turns are recognised in pieces: once the open piece is longer than 15 s, its words are
        settled at a pause and the next piece begins there.
        """
        if end == self._end and self._task is not None and not self._failed():
            return
        self.cancel()
        if (
            milliseconds(self._end - self._piece_start()) > _PIECE_MS
            and self._task is not None
            and self._task.done()
            and not self._failed()
        ):
            settled = " ".join([*self._settled, self._task.result().text])
            self._settled = [settled[-_MAX_SETTLED_CHARACTERS:]]
            self._settled_until = self._end
        self._end = end
        start = max(
            self.earliest,
            self._piece_start() - samples(PREROLL_MS),
            end - samples(_LONGEST_PIECE_MS),
        )
        stop = min(end + samples(POSTROLL_MS), listener.heard_until)
        if self.latest is not None:
            stop = min(stop, self.latest)
        self.recognise_began = time.monotonic()
        with tracing.within(self.trace):
            self._task = asyncio.create_task(listener.transcribe(start, max(stop, start + 1)))
            self._task.add_done_callback(lambda task: self._recognised(task, on_words))

    def is_long(self, end: int) -> bool:
        """Whether so much was said up to `end` without a pause that it should be recognised."""
        return milliseconds(end - max(self._piece_start(), self._end)) > _PIECE_MS

    async def words(self) -> str:
        """All words of the turn, once they are recognised. Raises StatusError if they can't be."""
        if self._task is not None:
            await asyncio.shield(self._task)
        return self.known_words()

    def known_words(self) -> str:
        """The words that are known so far."""
        latest: list[str] = []
        if self._task is not None and self._task.done() and not self._failed():
            latest = [self._task.result().text]
        parts = [self.carried, *self._settled, *latest, self.heard_words()]
        return " ".join(part for part in parts if part)

    def heard_words(self) -> str:
        """The words of its speech so far."""
        return " ".join(speech.text for speech in self.speech if speech.text)

    def cancel(self) -> None:
        """Stops waiting for a recognition that runs."""
        if self._task is not None and not self._task.done():
            self._task.cancel()

    def _piece_start(self) -> int:
        return max(self.start, self._settled_until)

    def _failed(self) -> bool:
        task = self._task
        return (
            task is not None and task.done() and (task.cancelled() or task.exception() is not None)
        )

    def _recognised(self, task: asyncio.Task[Transcript], on_words: Callable[[str], None]) -> None:
        if not task.cancelled() and task.exception() is None and task is self._task:
            self.recognise_ended = time.monotonic()
            on_words(self.known_words())
