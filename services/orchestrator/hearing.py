"""What the LLM hears of the user (aligned mode): speech embeddings, on the branch that listens.

A segment begins where the user begins to speak. Its embeddings are read as they come; its probes,
where there is a full-duplex predictor, are asked after them and leave nothing behind. While the
assistant speaks, a branch beside the conversation listens.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from minmo.rpc import tracing
from minmo.v1 import common_pb2
from services.orchestrator import items
from services.orchestrator.answering import Answering
from services.orchestrator.branches import Branches
from services.orchestrator.listener import Embeddings, Listener, Probe
from services.orchestrator.prober import Answered, Prober
from services.orchestrator.store import SessionStore
from services.orchestrator.turn_taking import samples
from services.orchestrator.user_turn import POSTROLL_MS, PREROLL_MS, Speech, UserTurn


class Hearing:
    """The segment that is open, and what is done with what is heard in it.

    Args:
        session_id: the session.
        listener: to the encoder.
        branches: of what the LLM has read.
        store: keeps the embeddings of the turn that is open.
        in_background: does work that nobody waits for.
        on_answered: gets what the full-duplex predictor says.
    """

    def __init__(
        self,
        session_id: str,
        listener: Listener,
        branches: Branches,
        store: SessionStore,
        *,
        in_background: Callable[[Awaitable[None]], None],
        on_answered: Callable[[Answered], Awaitable[None]],
    ) -> None:
        self._session_id = session_id
        self._listener = listener
        self._branches = branches
        self._store = store
        self._in_background = in_background
        self._prober = Prober(on_answered)
        self.speech: Speech | None = None
        """What is heard in the segment that is open."""
        self.overlap_checkpoint: int | None = 0
        """How much the branch over an answer had read before the user's turn."""
        self.probes = False
        """Whether the full-duplex predictor is asked."""
        self._may_resume = True

    async def stop(self) -> None:
        """Asks the predictor nothing any more."""
        await self._prober.stop()

    # --- the user's turn

    async def begin_turn(self, turn: UserTurn, start: int, *, width: int, goes_on: bool) -> None:
        """Listens to a turn of the user.

        Args:
            turn: it gets what is heard.
            start: where to listen from, in samples at 16 kHz.
            width: of an embedding.
            goes_on: whether the LLM has read the beginning of this turn.
        """
        if self._branches.overlap is not None:
            self._branches.adopt_overlap()
            turn.checkpoint = self.overlap_checkpoint
            if self.speech is not None:
                turn.speech.append(self.speech)
            return
        if not goes_on:
            context = self._branches.main
            context.add([items.role_start(common_pb2.ROLE_USER)])
            if self._may_resume:
                # The stream before may have ended in the middle of the turn.
                stored, words = await self._store.embeddings(self._session_id)
                context.add([items.embeddings(_matrix(rows, width)) for rows in stored])
                turn.speech.append(Speech(0, words))
            else:
                await self._store.clear_embeddings(self._session_id)
        self._may_resume = False
        with tracing.within(turn.trace):
            turn.speech.append(await self._listen(start))

    async def end_turn(self, turn: UserTurn, end: int, answering: Answering) -> bool:
        """The user's turn ends at `end`; whether all of it was heard already."""
        self._prober.forget()
        if self.has_heard(end):
            # What is left of the segment is silence: nothing is to be waited for.
            answering.embeddings_over.set()
            return True
        answering.embeddings_over.clear()
        last = self._end_of_speech(end)
        await self._listener.end_segment(last if turn.latest is None else min(last, turn.latest))
        return False

    async def drop(self) -> None:
        """Asks for no more; what came is in the LLM, or of no use."""
        self.speech = None
        self._prober.forget()
        await self._listener.drop_segment()
        await self._store.clear_embeddings(self._session_id)

    def has_heard(self, end: int) -> bool:
        """Whether the LLM has been given all that was said before a pause that began at `end`."""
        return self.speech is not None and self.speech.end >= self._end_of_speech(end)

    # --- what comes from the encoder

    async def take(
        self, part: Embeddings, turn: UserTurn | None, answering: Answering
    ) -> Speech | None:
        """Lets the LLM read embeddings; what is heard in the segment, unless it is not open."""
        speech = self.speech
        if speech is None or part.segment_id != speech.segment_id:
            return None
        speech.text, speech.end = part.text, part.end
        if part.matrix.rows:
            await self._read_on(part.matrix, turn, answering)
        if part.final:
            self.speech = None
            await self._store.clear_embeddings(self._session_id)
            answering.embeddings_over.set()
        return speech

    async def _read_on(
        self, matrix: common_pb2.FloatMatrix, turn: UserTurn | None, answering: Answering
    ) -> None:
        context = self._branches.listening
        if context is self._branches.main:
            await answering.speech_goes_on()
        context.add([items.embeddings(matrix)])
        with tracing.within(turn.trace if turn is not None else tracing.NONE):
            self._in_background(context.sync())
        words = self.speech.text if self.speech is not None else ""
        if turn is not None:
            words = turn.heard_words()
        await self._store.push_embeddings(self._session_id, matrix.data, words)

    def ask(self, probe: Probe) -> None:
        """Asks the predictor about a step of the segment."""
        if self.is_of_segment(probe.segment_id):
            self._prober.ask(self._branches.listening, probe)

    def is_of_segment(self, segment_id: int) -> bool:
        """Whether it is about what is heard now."""
        return self.speech is not None and self.speech.segment_id == segment_id

    # --- over an answer

    async def listen_over(self, start: int, answering: Answering) -> None:
        """A branch of the LLM's cache listens to the user while the assistant speaks."""
        answer = answering.current
        if answer is None or self._branches.overlap is not None:
            return
        heard = answer.utterance.heard_tokens() if answer.utterance is not None else 0
        if heard:
            overlap = await self._branches.open_overlap(answer.base + heard)
            overlap.add([items.interruption(), items.turn_end()])
            self.overlap_checkpoint = len(overlap)
            overlap.add([items.role_start(common_pb2.ROLE_USER)])
        elif answer.content:
            # Nothing was heard yet: the user goes on with the turn before.
            await self._branches.open_overlap(answer.content)
            spoken = answer.spoken
            self.overlap_checkpoint = spoken.checkpoint if spoken is not None else 0
        else:
            return
        await self._store.clear_embeddings(self._session_id)
        await self._listen(start)

    async def stop_over(self) -> None:
        """What was said over an answer is forgotten."""
        if self._branches.overlap is not None:
            await self.drop()
            self._branches.drop_overlap()

    async def _listen(self, start: int) -> Speech:
        """Asks for the embeddings of what the user says from `start` on."""
        start = max(0, start - samples(PREROLL_MS))
        segment_id = await self._listener.start_segment(start, probes=self.probes)
        self.speech = Speech(segment_id, end=start)
        return self.speech

    def _end_of_speech(self, end: int) -> int:
        """Up to where speech is listened to that ended at `end`: detectors are early."""
        return min(end + samples(POSTROLL_MS), self._listener.heard_until)


def _matrix(rows: bytes, width: int) -> common_pb2.FloatMatrix:
    return common_pb2.FloatMatrix(data=rows, rows=len(rows) // (4 * width), columns=width)
