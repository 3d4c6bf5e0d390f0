"""Answers: begun when the user's turn has ended, stopped when the user takes the floor back."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import grpc
import structlog

from minmo.rpc import metrics
from minmo.rpc.errors import StatusError, deadline_exceeded
from minmo.v1 import common_pb2, conversation_pb2
from minmo.v1.conversation_pb2 import TurnEventKind
from services.orchestrator import items
from services.orchestrator.branches import Branches
from services.orchestrator.mind import Sampling
from services.orchestrator.record import Record, heard_so_far
from services.orchestrator.responses import Responses
from services.orchestrator.store import StoredTurn
from services.orchestrator.user_turn import UserTurn
from services.orchestrator.utterance import Audio, Utterance, UtteranceState, Voice
from services.orchestrator.waterfall import Waterfall

log = structlog.get_logger()

STOP_REPORT_SECONDS = 0.3
"""How long a client may take to tell how far it has played, after it was told to stop."""
_FULL = 0.7
_MARGIN = 8
_COUNTED: dict[str, metrics.TurnOutcome] = {
    "completed": "answered",
    "interrupted": "interrupted",
    "failed": "failed",
}


@dataclass(frozen=True)
class Manner:
    """How answers are made.

    Attributes:
        aligned: the LLM reads speech embeddings, the voice hidden states.
        context_length: positions that the LLM's cache holds.
        max_tokens: longest answer.
        sampling: how tokens are chosen.
        voice: how to speak.
        reports_playback: whether the client tells how far it has played.
        embed_seconds: longest wait for the last embeddings of a turn.
    """

    aligned: bool
    context_length: int
    max_tokens: int
    sampling: Sampling
    voice: Voice
    reports_playback: bool
    embed_seconds: float

    @property
    def prompt_limit(self) -> int:
        """Positions that the history may take when the LLM reads it anew."""
        return int(_FULL * self.context_length) - self.max_tokens


@dataclass
class Answer:
    """An answer that is under way.

    Attributes:
        user: the user's turn, once it is in the record.
        spoken: the same as it was spoken; None for a question that was found in the record.
        spoken_ms: length of its speech; 0 for what was typed.
        waterfall: where its time goes.
        committed: writes the user's turn down.
        turn: the assistant's turn, once the LLM has read the question.
        content: items that the LLM had read at the end of the user's speech (aligned).
        base: items that the LLM had read when the answer began.
    """

    user: StoredTurn | None
    spoken: UserTurn | None
    spoken_ms: int
    waterfall: Waterfall
    task: asyncio.Task[None] | None = None
    committed: asyncio.Task[None] | None = None
    utterance: Utterance | None = None
    turn: StoredTurn | None = None
    content: int = 0
    base: int = 0


class Answering:
    """Gives one answer at a time.

    Args:
        session_id: the session.
        manner: how answers are made.
        record: the history.
        branches: what the LLM has read.
        responses: to the client.
        on_ended: told when an answer has ended by itself, with what went wrong.
    """

    def __init__(
        self,
        session_id: str,
        manner: Manner,
        *,
        record: Record,
        branches: Branches,
        responses: Responses,
        on_ended: Callable[[Answer, StatusError | None], Awaitable[None]],
    ) -> None:
        self._session_id = session_id
        self._manner = manner
        self._record = record
        self._branches = branches
        self._responses = responses
        self._on_ended = on_ended
        self._prepared: str | None = None
        self._expected: int | None = None
        self._preparing = asyncio.Lock()
        self._latest: Utterance | None = None
        self.current: Answer | None = None
        """The answer that is under way."""
        self.unheard: Answer | None = None
        """The last answer, if it was stopped before anything was heard of it."""
        self.client_listens = True
        """Whether the client can still tell how far it has played."""
        self.embeddings_over = asyncio.Event()
        """Set when the last embeddings of the user's turn have come."""

    # --- the life of an answer

    def begin(
        self,
        waterfall: Waterfall,
        *,
        user: StoredTurn | None = None,
        spoken: UserTurn | None = None,
        spoken_ms: int = 0,
    ) -> None:
        """Begins an answer: to a turn that is in the record, or to one that was just spoken."""
        answer = Answer(user, spoken, spoken_ms, waterfall)
        self.current = answer
        answer.task = asyncio.create_task(self._run(answer))

    async def stop(self, why: str, *, tell: bool = True) -> None:
        """Stops the answer that is under way, and keeps what was heard of it.

        Args:
            why: for the client.
            tell: False if there is no client any more.
        """
        answer, self.current = self.current, None
        if answer is None or answer.task is None:
            return
        utterance = answer.utterance
        audible = utterance is not None and utterance.state is not UtteranceState.THINKING
        if tell and audible and utterance is not None:
            await self._responses.stop_playback(utterance.utterance_id)
        answer.task.cancel()
        await asyncio.gather(answer.task, return_exceptions=True)
        if tell and audible and utterance is not None:
            await utterance.wait_playback_stopped(STOP_REPORT_SECONDS)
        heard_all = utterance is not None and utterance.state is UtteranceState.HEARD
        await self._conclude(answer, "completed" if heard_all else "interrupted", tell=tell)
        if tell and not heard_all:
            await self._responses.event(
                TurnEventKind.TURN_EVENT_KIND_INTERRUPTED,
                utterance_id=utterance.utterance_id if utterance is not None else "",
                detail=why,
            )

    async def ended(self, answer: Answer, error: StatusError | None) -> None:
        """Concludes an answer that has ended by itself."""
        self.current = None
        if answer.utterance is not None or error is not None:
            outcome = "failed" if error is not None else "completed"
            await self._conclude(answer, outcome, error=error)

    async def played(self, playback: conversation_pb2.Playback) -> None:
        """The client has told how far it has played."""
        utterance, answer = self._latest, self.current
        if utterance is None or utterance.utterance_id != playback.utterance_id:
            return
        utterance.played(playback.played_samples, finished=playback.finished)
        if answer is not None and answer.utterance is utterance and answer.turn is not None:
            await self._record.save_progress(answer.turn, utterance)

    def client_is_done(self) -> None:
        """The client will tell nothing any more: what is sent counts as heard."""
        self.client_listens = False
        if self._latest is not None:
            self._latest.assume_played()

    # --- what the LLM reads before an answer

    async def prepare(self, spoken: UserTurn, words: str) -> None:
        """Makes the LLM read the user's words and stand at the start of its answer."""
        async with self._preparing:
            context = self._branches.main
            if self._prepared != words:
                self._expected = None
                await context.rewind(spoken.checkpoint)
                context.add(
                    [
                        items.role_start(common_pb2.ROLE_USER),
                        items.text(words),
                        items.turn_end(),
                        items.role_start(common_pb2.ROLE_ASSISTANT),
                    ]
                )
                self._prepared = words
            await context.sync()

    def expect_answer(self) -> bool:
        """Puts the start of an answer behind the user's speech, in the hope that it has ended.

        The LLM may read it while nobody knows yet whether the user goes on.

        Returns:
            Whether it was not there already.
        """
        if self._expected is not None:
            return False
        self._expected = self._put_answer_start()
        return True

    async def speech_goes_on(self) -> None:
        """Takes the start of an answer back: there is more of the user's speech."""
        if self._expected is not None:
            end_of_speech, self._expected = self._expected, None
            await self._branches.main.rewind(end_of_speech)

    def _put_answer_start(self) -> int:
        """Ends the user's turn and starts the assistant's; gives where the user's speech ended."""
        context = self._branches.main
        end_of_speech = len(context)
        context.add([items.turn_end(), items.role_start(common_pb2.ROLE_ASSISTANT)])
        return end_of_speech

    async def forget(self, spoken: UserTurn) -> None:
        """Makes the LLM forget what it has read of a turn."""
        async with self._preparing:
            self._prepared = self._expected = None
            await self._branches.main.rewind(spoken.checkpoint)

    # --- making an answer

    async def _run(self, answer: Answer) -> None:
        error: StatusError | None = None
        try:
            await self._give(answer)
        except StatusError as failure:
            error = failure
        except Exception:
            log.exception("answer failed")
            error = StatusError(grpc.StatusCode.INTERNAL, "the answer failed unexpectedly")
        await self._on_ended(answer, error)

    async def _give(self, answer: Answer) -> None:
        spoken = answer.spoken
        if answer.user is None and spoken is not None:
            words = await self._understand(answer, spoken)
            if words is None:
                await self.forget(spoken)
                await self._responses.event(TurnEventKind.TURN_EVENT_KIND_NOTHING_SAID)
                metrics.count_turn("no_speech")
                return
            answer.user = self._new_user_turn(words, answer.spoken_ms)
            # The LLM need not wait for the disk; the client hears nothing before it is done.
            answer.committed = asyncio.create_task(self._commit(answer.user))
        assert answer.user is not None, "an answer has the user's turn or the way to it"
        read_as_speech = self._manner.aligned and answer.spoken_ms > 0
        await self._read_question(answer, answer.user, read_as_speech=read_as_speech)
        utterance = self._begin_utterance(answer)
        context = self._branches.main
        room = self._manner.context_length - context.size - _MARGIN
        await utterance.run(
            context,
            max(1, min(self._manner.max_tokens, room)),
            self._manner.sampling,
            common_pb2.FloatMatrix(),
        )

    async def _understand(self, answer: Answer, spoken: UserTurn) -> str | None:
        """The words of a turn; None if there are none."""
        if self._manner.aligned:
            began = time.monotonic()
            try:
                async with asyncio.timeout(self._manner.embed_seconds):
                    await self.embeddings_over.wait()
            except TimeoutError:
                raise deadline_exceeded(
                    f"the encoder did not end the turn within {self._manner.embed_seconds:g} s"
                ) from None
            answer.waterfall.add("embed", began)
            return spoken.known_words() or None
        words = await spoken.words()
        answer.waterfall.add("recognise", spoken.recognise_began, spoken.recognise_ended)
        return words or None

    async def _read_question(
        self, answer: Answer, user: StoredTurn, *, read_as_speech: bool
    ) -> None:
        context = self._branches.main
        began = time.monotonic()
        if read_as_speech:
            expected, self._expected = self._expected, None
            answer.content = self._put_answer_start() if expected is None else expected
            await context.sync()
        else:
            if answer.spoken is None:
                answer.spoken = UserTurn(0, checkpoint=len(context))
            await self.prepare(answer.spoken, user.text)
        answer.waterfall.add("prefill", began)
        answer.base = len(context)
        self._prepared = None

    def _begin_utterance(self, answer: Answer) -> Utterance:
        assert answer.user is not None, "an utterance answers a turn of the user"
        utterance_id = f"u{uuid.uuid4().hex[:12]}"
        index = answer.user.index + 1
        turn = StoredTurn(index, "assistant", "", outcome="open", started=time.time())

        async def on_token(index: int, text: str) -> None:
            await _done(answer.committed)
            await self._responses.assistant_text(utterance_id, index, text)

        async def on_audio(audio: Audio) -> None:
            await _done(answer.committed)
            if audio.first_sample == 0 and audio.data:
                await self._responses.event(
                    TurnEventKind.TURN_EVENT_KIND_ASSISTANT_STARTED, utterance_id=utterance_id
                )
                await self._record.save_progress(turn, utterance)
            await self._responses.audio(utterance_id, audio)

        utterance = Utterance(
            utterance_id,
            self._session_id,
            self._manner.voice,
            reports_playback=self._manner.reports_playback,
            on_token=on_token,
            on_audio=on_audio,
            on_outage=lambda lost: self._responses.outage("voice_decoder", lost),
            waterfall=answer.waterfall,
        )
        answer.turn, answer.utterance, self._latest = turn, utterance, utterance
        if not self.client_listens:
            utterance.assume_played()
        return utterance

    async def commit_user(self, words: str, spoken_ms: int) -> StoredTurn:
        """Writes the user's turn down, and tells the client."""
        user = self._new_user_turn(words, spoken_ms)
        await self._commit(user)
        return user

    def _new_user_turn(self, words: str, spoken_ms: int) -> StoredTurn:
        # A turn whose answer nobody heard goes on under its number.
        before = self.unheard.user if self.unheard is not None else None
        index = self._record.next_index if before is None else before.index
        self.unheard = None
        return StoredTurn(index, "user", words, started=time.time(), audio_ms=spoken_ms)

    async def _commit(self, user: StoredTurn) -> None:
        await self._record.put(user)
        await self._responses.user_text(user.index, user.text, final=True)

    # --- the end of an answer

    async def _conclude(
        self, answer: Answer, outcome: str, *, error: StatusError | None = None, tell: bool = True
    ) -> None:
        """Notes how an answer ended: in the record, in what the LLM has read, at the client."""
        if answer.committed is not None:
            await asyncio.gather(answer.committed, return_exceptions=True)
        utterance, turn = answer.utterance, answer.turn
        was_heard = outcome == "completed" or (
            utterance is not None and bool(utterance.heard_text.strip())
        )
        self.unheard = answer if outcome == "interrupted" and not was_heard else None
        if utterance is not None and turn is not None and was_heard:
            await self._record.put(heard_so_far(turn, utterance, outcome))
        elif turn is not None:
            await self._record.drop(turn)
        metrics.count_turn(_COUNTED[outcome])
        if not tell:
            return
        if utterance is not None and was_heard:
            await self._keep_heard(answer, outcome, utterance)
        else:
            await self._keep_nothing(answer, outcome)
        if error is not None:
            log.error("answer failed", error=str(error))
        if utterance is not None:
            answer.waterfall.publish()
            if outcome == "completed":
                await self._responses.event(
                    TurnEventKind.TURN_EVENT_KIND_ASSISTANT_FINISHED,
                    utterance_id=utterance.utterance_id,
                    detail=utterance.unspoken_reason,
                )
        if utterance is not None or error is not None:
            await self._responses.report(
                outcome,
                answer.waterfall,
                user=answer.user,
                turn=turn,
                utterance=utterance,
                error=error,
            )

    async def _keep_heard(self, answer: Answer, outcome: str, utterance: Utterance) -> None:
        """The LLM has read what was heard, no more, and the turn is closed."""
        if self._branches.overlap is not None:
            return  # the branch that listens was made of what was heard
        context = self._branches.main
        if context.size > _FULL * self._manner.context_length or outcome == "failed":
            self._expected = None
            context.replace(self._record.prompt(self._manner.prompt_limit))
        elif outcome == "interrupted":
            await context.rewind(answer.base + utterance.heard_tokens())
            context.add([items.interruption(), items.turn_end()])
        else:
            context.add([items.turn_end()])

    async def _keep_nothing(self, answer: Answer, outcome: str) -> None:
        """The LLM forgets an answer of which nothing was heard."""
        self._prepared = None
        context = self._branches.main
        if self._branches.overlap is not None:
            return
        if outcome == "failed":
            self._expected = None
            context.replace(self._record.prompt(self._manner.prompt_limit))
        elif answer.content:
            # Speech goes on where it was: before the end of the user's turn.
            await context.rewind(answer.content)
        elif answer.spoken is not None and not self._manner.aligned:
            # The words come again, with those that follow.
            await context.rewind(answer.spoken.checkpoint)


async def _done(work: asyncio.Task[None] | None) -> None:
    """Waits for work that goes on when the wait is cancelled."""
    if work is not None:
        await asyncio.shield(work)
