"""Answers: begun when the user's turn has ended, stopped when the user takes the floor back."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import grpc
import structlog

from minmo.rpc import metrics, tracing
from minmo.rpc.errors import StatusError, deadline_exceeded
from minmo.rpc.queues import StreamClosedError
from minmo.v1 import common_pb2, conversation_pb2
from minmo.v1.conversation_pb2 import TurnEventKind
from services.orchestrator import history, items, tool_format, traces
from services.orchestrator.branches import Branches
from services.orchestrator.decisions import regret_wordless
from services.orchestrator.drafting import Drafting
from services.orchestrator.manner import FULL, Manner, Wishes
from services.orchestrator.mind import Context
from services.orchestrator.query import NOTHING, Query
from services.orchestrator.record import Record, heard_so_far
from services.orchestrator.responses import Responses
from services.orchestrator.store import StoredTurn
from services.orchestrator.tool_calls import CallParser
from services.orchestrator.tools import BadCallError, checked_call, new_call_id
from services.orchestrator.traces import Traces
from services.orchestrator.user_turn import UserTurn
from services.orchestrator.utterance import Audio, Utterance, UtteranceState
from services.orchestrator.waterfall import Waterfall

log = structlog.get_logger()

STOP_REPORT_SECONDS = 0.8
"""How long a client is waited for to tell how far it has played, after it was told to stop; what it
tells later corrects the history."""
_MARGIN = 8
_MAX_CALLS = 16
_KEPT_ANSWERS = 4
_COUNTED: dict[str, metrics.TurnOutcome] = {
    "completed": "answered",
    "interrupted": "interrupted",
    "failed": "failed",
}


@dataclass
class Answer:
    """An answer that is under way.

    Attributes:
        user: the user's turn, once it is in the record.
        spoken: the same as it was spoken; None for a question that was found in the record.
        spoken_ms: length of its speech; 0 for what was typed.
        waterfall: where its time goes.
        manner: how it is made; None for that of all.
        to_history: it answers the history as it stands, not a turn that the LLM is yet to read.
        asked: the end of that history, where it is a turn that can wait for an answer.
        request_id: of the request that asked for it.
        committed: writes the user's turn down.
        writing: writes its latest call down.
        turn: the assistant's turn, once the LLM has read the question.
        calls: turns that are calls of tools.
        context: the branch on which it is made.
        aside: whether that is one for this answer alone.
        content: items that the LLM had read at the end of the user's speech (aligned).
        start: items that the LLM had read before the assistant's turn.
        base: items that the LLM had read when the answer began.
        read_count: the same in positions.
        trace: of the turn that it answers.
    """

    user: StoredTurn | None
    spoken: UserTurn | None
    spoken_ms: int
    waterfall: Waterfall
    manner: Manner | None = None
    to_history: bool = False
    asked: StoredTurn | None = None
    request_id: str = ""
    task: asyncio.Task[None] | None = None
    committed: asyncio.Task[None] | None = None
    writing: asyncio.Task[None] | None = None
    utterance: Utterance | None = None
    turn: StoredTurn | None = None
    calls: list[StoredTurn] = field(default_factory=list)
    context: Context | None = None
    aside: bool = False
    content: int = 0
    start: int = 0
    base: int = 0
    read_count: int = 0
    trace: tracing.Span = tracing.NONE

    def concerns(self, index: int) -> bool:
        """Whether a turn is its question, or part of it."""
        turns = [self.user, self.asked, self.turn, *self.calls]
        return any(turn is not None and turn.index == index for turn in turns)


class Answering:
    """Gives one answer at a time.

    Args:
        session_id: the session.
        manner: how answers are made.
        record: the history.
        branches: what the LLM has read.
        responses: to the client.
        on_ended: told when an answer has ended by itself, with what went wrong.
        traces: begins those of answers that no speech has begun.
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
        traces: Traces | None = None,
    ) -> None:
        self._session_id = session_id
        self._traces = traces or Traces(session_id)
        self.manner = manner
        """How answers are made from the next one on."""
        self._record = record
        self._branches = branches
        self._responses = responses
        self._on_ended = on_ended
        self._prepared: str | None = None
        self._expected: int | None = None
        self._preparing = asyncio.Lock()
        self._latest: Utterance | None = None
        self._instructed: tuple[tuple[str, str], Query] | None = None
        self._concluded: dict[str, Answer] = {}
        self._drafting = Drafting(branches)
        self.current: Answer | None = None
        """The answer that is under way."""
        self.unheard: Answer | None = None
        """The last answer, if it was stopped before anything was heard of it."""
        self.outdated = False
        """Whether the history has changed since the answer that is under way began."""
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
        request_id: str = "",
    ) -> None:
        """Begins an answer: to a turn that is in the record, or to one that was just spoken."""
        self._begin(Answer(user, spoken, spoken_ms, waterfall, request_id=request_id))

    def begin_to_history(self, waterfall: Waterfall, wishes: Wishes, *, request_id: str) -> None:
        """Begins an answer to the history as it stands; the LLM must have read it all."""
        manner = wishes.applied_to(self.manner)
        user, turns = self._record.last_user_turn(), self._record.turns
        asked = turns[-1] if turns and turns[-1].role in ("user", "tool") else None
        self._begin(
            Answer(
                user,
                None,
                0,
                waterfall,
                manner,
                to_history=True,
                asked=asked,
                request_id=request_id,
            )
        )

    def _begin(self, answer: Answer) -> None:
        if answer.manner is None:
            answer.manner = self.manner
        spoken = answer.spoken
        began = answer.waterfall.speech_end
        answer.trace = self._traces.begin(began) if spoken is None else spoken.trace
        self.current = answer
        with tracing.within(answer.trace):
            answer.task = asyncio.create_task(self._run(answer))

    async def stop(self, why: str, *, tell: bool = True, since: float | None = None) -> None:
        """Stops the answer that is under way, and keeps what was heard of it.

        Args:
            why: for the client.
            tell: False if there is no client any more.
            since: when what stops it came from the user (monotonic seconds), where that is known.
        """
        answer, self.current = self.current, None
        if answer is None or answer.task is None:
            return
        with tracing.within(answer.trace), tracing.span("interrupted", why=why):
            outcome = await self._stop(answer, answer.task, why, tell=tell, since=since)
        self._end_trace(answer, outcome)

    async def _stop(
        self,
        answer: Answer,
        task: asyncio.Task[None],
        why: str,
        *,
        tell: bool,
        since: float | None,
    ) -> str:
        """Stops an answer; see `stop`. Returns how it ended."""
        utterance = answer.utterance
        audible = utterance is not None and utterance.audible
        if tell and audible and utterance is not None:
            await self._responses.stop_playback(
                utterance.utterance_id, request_id=answer.request_id
            )
            if since is not None:
                metrics.TURN_STOP.observe(time.monotonic() - since)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if tell and audible and utterance is not None:
            await utterance.wait_playback_stopped(STOP_REPORT_SECONDS)
        heard_all = utterance is not None and utterance.state is UtteranceState.HEARD
        outcome = "completed" if heard_all else "interrupted"
        await self._conclude(answer, outcome, tell=tell)
        if tell and not heard_all:
            await self._responses.event(
                TurnEventKind.TURN_EVENT_KIND_INTERRUPTED,
                utterance_id=utterance.utterance_id if utterance is not None else "",
                detail=why,
                request_id=answer.request_id,
            )
        return outcome

    async def ended(self, answer: Answer, error: StatusError | None) -> None:
        """Concludes an answer that has ended by itself."""
        self.current = None
        if answer.utterance is not None or error is not None:
            outcome = "failed" if error is not None else "completed"
            with tracing.within(answer.trace):
                await self._conclude(answer, outcome, error=error)
            self._end_trace(answer, outcome, failure=error.code.name if error is not None else "")

    async def played(self, playback: conversation_pb2.Playback) -> None:
        """The client has told how far it has played."""
        utterance, answer = self._latest, self.current
        if utterance is None or utterance.utterance_id != playback.utterance_id:
            return
        utterance.played(playback.played_samples, finished=playback.finished)
        if answer is not None and answer.utterance is utterance and answer.turn is not None:
            await self._record.save_progress(answer.turn, utterance)

    def corrects(self, playback: conversation_pb2.Playback) -> bool:
        """Whether something else was heard of an answer than it seemed, now that it has ended."""
        answer = self._concluded.get(playback.utterance_id)
        utterance = self._latest if answer is None else answer.utterance
        if not playback.finished or utterance is None:
            return False
        if answer is None and (
            utterance.utterance_id != playback.utterance_id
            or utterance.state is not UtteranceState.HEARD
        ):
            return False
        played = min(playback.played_samples, utterance.sample_count)
        return played != utterance.played_samples

    async def correct(self, playback: conversation_pb2.Playback) -> StoredTurn | None:
        """Corrects the history to what was heard of an answer; None if there is nothing to."""
        answer = self._concluded.get(playback.utterance_id)
        if answer is None or not self.corrects(playback):
            return None
        utterance, turn = answer.utterance, answer.turn
        if utterance is None or turn is None:
            return None
        known = self._record.find(turn.index)
        # Its number may be that of another turn by now.
        if known is None or known.started != turn.started or known.is_call:
            return None
        utterance.cut(playback.played_samples)
        corrected = heard_so_far(turn, utterance, "interrupted")
        await self._record.put(corrected)
        return corrected if corrected.text != known.text else None

    @property
    def only_plays(self) -> bool:
        """Whether all of the answer was made and sent, and it is only being played."""
        utterance = self.current.utterance if self.current is not None else None
        return utterance is not None and utterance.state is UtteranceState.SENT

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
                await self._rewind_to(spoken)
                context.add(
                    [
                        items.role_start(common_pb2.ROLE_USER),
                        items.text(words, asked=True),
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

    def draft(self) -> None:
        """Begins an answer that nobody hears yet, in the hope that the user's turn has ended."""
        manner = self.manner
        room = manner.context_length - self._branches.main.size - 2 * _MARGIN
        forced = manner.tool_choice.forces and manner.tools
        if self.current is None and room > 0 and not forced:
            self._drafting.begin(manner, min(manner.max_tokens, room))

    def drop_draft(self) -> None:
        """Drops the answer that was begun: the user goes on, or nobody will ask for it."""
        self._drafting.drop()

    async def speech_goes_on(self) -> None:
        """Takes the start of an answer back: there is more of the user's speech."""
        self.drop_draft()
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
        self.drop_draft()
        async with self._preparing:
            self._prepared = self._expected = None
            if self.current is None:
                await self._rewind_to(spoken)

    async def _rewind_to(self, spoken: UserTurn) -> None:
        """The LLM forgets what it has read of a turn, and knows where it begins."""
        context = self._branches.main
        if spoken.checkpoint is None:
            spoken.checkpoint = len(context)
        await context.rewind(spoken.checkpoint)

    # --- what is read without an answer

    async def settle(
        self, spoken: UserTurn, spoken_ms: int, *, request_id: str
    ) -> StoredTurn | None:
        """Writes a turn down that waits until the client asks for an answer.

        Returns:
            The turn; None if it had no words.

        Raises:
            StatusError: its words cannot be had.
        """
        words = await self._understand(spoken, Waterfall(time.monotonic()))
        if words is None:
            regret_wordless(spoken)
            await self.forget(spoken)
            await self._nothing_said(request_id)
            traces.end(spoken.trace, "no_speech")
            return None
        user = replace(self._new_user_turn(words, spoken_ms), waits=True)
        await self._commit(user, request_id)
        if self.current is not None:
            self.outdated = True
            traces.end(spoken.trace, "waits")
            return user
        async with self._preparing:
            context = self._branches.main
            if self.manner.aligned:
                await self.speech_goes_on()
                context.add([items.turn_end()])
            else:
                await self._rewind_to(spoken)
                context.add(history.told([user]))
            self._prepared = None
        await context.sync()
        traces.end(spoken.trace, "waits")
        return user

    async def nothing_settled(self, spoken: UserTurn, detail: str, request_id: str) -> None:
        """Gives a turn up whose words cannot be had."""
        await self.forget(spoken)
        await self._nothing_said(request_id, detail)
        traces.end(spoken.trace, "failed", failure="WORDS_UNKNOWN")

    async def reread(self, turn: UserTurn | None) -> None:
        """The history, or the instructions, are others: the LLM reads all of it anew.

        Args:
            turn: the user's turn that is open, which is read again behind the rest.
        """
        if self.current is not None:
            self.outdated = True
            return
        async with self._preparing:
            context = self._branches.main
            keep_from = len(context)
            if self.manner.aligned:
                await self.speech_goes_on()
                keep_from = len(context)
                if turn is not None and turn.checkpoint is not None:
                    keep_from = turn.checkpoint
            self._prepared, self.unheard = None, None
            prompt = self._record.prompt(self.manner.prompt_limit)
            await context.rewrite(prompt, keep_from=keep_from)
            if turn is not None:
                turn.checkpoint, turn.carried = len(prompt), ""

    def read_on(self, turn: StoredTurn) -> None:
        """The LLM reads a turn at the end of the history."""
        if self.current is not None:
            self.outdated = True
        else:
            self._branches.main.add(history.told([turn]))

    # --- making an answer

    async def _run(self, answer: Answer) -> None:
        error: StatusError | None = None
        try:
            await self._give(answer)
        except StatusError as failure:
            error = failure
        except StreamClosedError:
            return  # the client is gone, and with it the stream
        except Exception:
            log.exception("answer failed")
            error = StatusError(grpc.StatusCode.INTERNAL, "the answer failed unexpectedly")
        await self._on_ended(answer, error)

    async def _give(self, answer: Answer) -> None:
        spoken = answer.spoken
        if answer.to_history:
            await self._read_history(answer)
        else:
            if answer.user is None and spoken is not None:
                words = await self._understand(spoken, answer.waterfall)
                if words is None:
                    await self.forget_unanswered(answer, spoken)
                    return
                answer.user = self._new_user_turn(words, answer.spoken_ms)
                # The LLM need not wait for the disk; the client hears nothing before it is done.
                answer.committed = asyncio.create_task(self._commit(answer.user, answer.request_id))
            assert answer.user is not None, "an answer has the user's turn or the way to it"
            read_as_speech = self.manner.aligned and answer.spoken_ms > 0
            await self._read_question(answer, answer.user, read_as_speech=read_as_speech)
        manner, context = self._manner_of(answer), answer.context
        assert context is not None, "the LLM has read what is answered"
        forced = await self._force_call(answer, context)
        answer.base, answer.read_count = len(context), context.size
        utterance = self._begin_utterance(answer, forced)
        room = manner.context_length - context.size - _MARGIN
        query = NOTHING if manner.text_only else await self._query(manner, context)
        await utterance.run(context, max(1, min(manner.max_tokens, room)), manner.sampling, query)

    async def _query(self, manner: Manner, context: Context) -> Query:
        """What the voice reads first: how it is to speak, and the user's words."""
        return (await self._instruction(manner)).before(
            context.query(), manner.voice.query_positions
        )

    async def _instruction(self, manner: Manner) -> Query:
        """How the voice is to speak, as the LLM reads it where the user says it."""
        voice = manner.voice
        if not (voice.instruct and voice.query_positions):
            return NOTHING
        told = (manner.system_prompt, voice.instruct)
        if self._instructed is None or self._instructed[0] != told:
            head = history.told_by_system(manner.system_prompt)
            branch = self._branches.beside([*head, *history.told_by_user(voice.instruct)])
            try:
                await branch.sync()
                self._instructed = told, branch.query()
            finally:
                self._branches.free(branch)
        return self._instructed[1]

    def _manner_of(self, answer: Answer) -> Manner:
        return self.manner if answer.manner is None else answer.manner

    async def forget_unanswered(self, answer: Answer, spoken: UserTurn) -> None:
        """A turn without words gets no answer."""
        self.drop_draft()
        regret_wordless(spoken)
        async with self._preparing:
            self._prepared = self._expected = None
            await self._rewind_to(spoken)
        await self._nothing_said(answer.request_id)
        traces.end(answer.trace, "no_speech")

    async def _nothing_said(self, request_id: str, detail: str = "") -> None:
        await self._responses.event(
            TurnEventKind.TURN_EVENT_KIND_NOTHING_SAID, detail=detail, request_id=request_id
        )
        metrics.count_turn("no_speech")

    async def _understand(self, spoken: UserTurn, waterfall: Waterfall) -> str | None:
        """The words of a turn; None if there are none."""
        if self.manner.aligned:
            began = time.monotonic()
            try:
                async with asyncio.timeout(self.manner.embed_seconds):
                    await self.embeddings_over.wait()
            except TimeoutError:
                raise deadline_exceeded(
                    f"the encoder did not end the turn within {self.manner.embed_seconds:g} s"
                ) from None
            waterfall.add("embed", began)
            return spoken.known_words() or None
        words = await spoken.words()
        waterfall.add("recognise", spoken.recognise_began, spoken.recognise_ended)
        return words or None

    async def _read_history(self, answer: Answer) -> None:
        """The LLM stands at the start of an answer to the history, on a branch of its own if need
        be: where the instructions of this answer are others."""
        self.drop_draft()
        manner, main = self._manner_of(answer), self._branches.main
        began = time.monotonic()
        if manner.system_text != self._record.system_text:
            prompt = self._record.prompt(manner.prompt_limit, system_text=manner.system_text)
            answer.context, answer.aside = self._branches.beside(prompt), True
        else:
            if main.size > manner.prompt_limit + manner.max_tokens:
                prompt = self._record.prompt(manner.prompt_limit)
                await main.rewrite(prompt, keep_from=len(main))
            answer.context = main
        answer.start = len(answer.context)
        answer.context.add([items.role_start(common_pb2.ROLE_ASSISTANT)])
        await answer.context.sync()
        answer.waterfall.add("prefill", began)

    async def _force_call(self, answer: Answer, context: Context) -> str:
        """Begins the call that the answer must be; returns what was written, maybe nothing."""
        manner = self._manner_of(answer)
        if not (manner.tool_choice.forces and manner.tools):
            return ""
        name = manner.tool_choice.name
        forced = tool_format.forced_start(
            [tool for tool in manner.tools if not name or tool.name == name]
        )
        context.add([items.text(forced)])
        await context.sync()
        return forced

    async def _read_question(
        self, answer: Answer, user: StoredTurn, *, read_as_speech: bool
    ) -> None:
        began = time.monotonic()
        drafted = await self._drafting.take() if read_as_speech else None
        context = self._branches.main
        if drafted is not None:
            answer.content, self._expected = drafted, None
        elif read_as_speech:
            expected, self._expected = self._expected, None
            answer.content = self._put_answer_start() if expected is None else expected
            await context.sync()
        else:
            self.drop_draft()
            if answer.spoken is None:
                answer.spoken = UserTurn(0, checkpoint=len(context))
            await self.prepare(answer.spoken, user.text)
        answer.waterfall.add("prefill", began)
        answer.context, answer.base = context, len(context)
        answer.start = answer.base - 1
        self._prepared = None

    def _begin_utterance(self, answer: Answer, forced: str) -> Utterance:
        utterance_id = f"u{uuid.uuid4().hex[:12]}"
        manner, request_id = self._manner_of(answer), answer.request_id
        index = self._record.next_index
        self._record.reserve(index)
        turn = StoredTurn(index, "assistant", "", outcome="open", started=time.time())

        async def on_token(index: int, text: str) -> None:
            await _done(answer.committed)
            await self._responses.assistant_text(utterance_id, index, text, request_id=request_id)

        async def on_audio(audio: Audio) -> None:
            await _done(answer.committed)
            if audio.first_sample == 0 and audio.data:
                await self._responses.event(
                    TurnEventKind.TURN_EVENT_KIND_ASSISTANT_STARTED,
                    utterance_id=utterance_id,
                    read_count=answer.read_count,
                    request_id=request_id,
                )
                await self._record.save_progress(turn, utterance)
            await self._responses.audio(utterance_id, audio, request_id=request_id)

        async def on_call(call: str) -> None:
            await _done(answer.committed)
            await self._called(answer, utterance, call)

        may_call = bool(manner.tools) and not manner.tool_choice.forbids
        utterance = Utterance(
            utterance_id,
            self._session_id,
            manner.voice,
            reports_playback=manner.reports_playback,
            on_token=on_token,
            on_audio=on_audio,
            on_outage=lambda lost: self._responses.outage("voice_decoder", lost),
            waterfall=answer.waterfall,
            calls=CallParser(forced) if may_call else None,
            on_call=on_call,
            only_calls=bool(forced),
            text_only=manner.text_only,
        )
        answer.turn, answer.utterance, self._latest = turn, utterance, utterance
        if not self.client_listens:
            utterance.assume_played()
        return utterance

    async def _called(self, answer: Answer, utterance: Utterance, call: str) -> None:
        """Writes a call down and tells the client, or says why it cannot be carried out."""
        assert answer.turn is not None, "an utterance has a turn"
        try:
            name, arguments = checked_call(call, self._manner_of(answer).tools)
            if len(answer.calls) == _MAX_CALLS:
                raise BadCallError(f"an answer has at most {_MAX_CALLS} calls")
        except BadCallError as error:
            metrics.TOOL_CALLS.labels("dropped").inc()
            await self._responses.event(
                TurnEventKind.TURN_EVENT_KIND_TOOL_CALL_DROPPED,
                utterance_id=utterance.utterance_id,
                detail=str(error),
                request_id=answer.request_id,
            )
            return
        first = not answer.calls and not utterance.text.strip()
        turn = StoredTurn(
            answer.turn.index if first else self._record.next_index,
            "assistant",
            "",
            started=time.time(),
            call_id=new_call_id(),
            call_name=name,
            call_arguments=arguments,
            utterance_id=utterance.utterance_id,
        )

        async def write() -> None:
            await self._record.put(turn)
            answer.calls.append(turn)
            metrics.TOOL_CALLS.labels("called").inc()
            await self._responses.tool_call(turn, request_id=answer.request_id)

        # An interruption must not leave it open whether it was written.
        answer.writing = asyncio.create_task(write())
        await _done(answer.writing)

    async def commit_user(self, words: str, spoken_ms: int, *, request_id: str = "") -> StoredTurn:
        """Writes the user's turn down, and tells the client."""
        user = self._new_user_turn(words, spoken_ms)
        await self._commit(user, request_id)
        return user

    def _new_user_turn(self, words: str, spoken_ms: int) -> StoredTurn:
        # A turn whose answer nobody heard goes on under its number.
        before = self.unheard.user if self.unheard is not None else None
        index = self._record.next_index if before is None else before.index
        self.unheard = None
        self._record.reserve(index)
        return StoredTurn(index, "user", words, started=time.time(), audio_ms=spoken_ms)

    async def _commit(self, user: StoredTurn, request_id: str) -> None:
        await self._record.put(user)
        await self._responses.user_text(user.index, user.text, final=True, request_id=request_id)

    # --- the end of an answer

    def _end_trace(self, answer: Answer, outcome: str, *, failure: str = "") -> None:
        answer.waterfall.trace(answer.trace)
        utterance, began = answer.utterance, answer.waterfall.first_audio
        if began is not None:
            tracing.begin("spoken", parent=answer.trace, began=began).end()
        if utterance is not None:
            answer.trace.set(tokens=utterance.made_count, audio_ms=utterance.audio_ms)
        traces.end(answer.trace, outcome, failure=failure)

    async def _conclude(
        self, answer: Answer, outcome: str, *, error: StatusError | None = None, tell: bool = True
    ) -> None:
        """Notes how an answer ended: in the record, in what the LLM has read, at the client."""
        for writing in (answer.committed, answer.writing):
            if writing is not None:
                await asyncio.gather(writing, return_exceptions=True)
        utterance, turn = answer.utterance, answer.turn
        was_heard = outcome == "completed" or (
            utterance is not None and bool(utterance.heard_text.strip())
        )
        if utterance is not None and was_heard:
            self._concluded[utterance.utterance_id] = answer
            for old in list(self._concluded)[:-_KEPT_ANSWERS]:
                del self._concluded[old]
        goes_on = outcome == "interrupted" and not was_heard and not answer.to_history
        self.unheard = answer if goes_on and not answer.calls else None
        if answer.asked is not None and outcome == "interrupted" and tell:
            # Who stopped an answer that was asked for asks again.
            await self._record.put(replace(answer.asked, waits=True, wishes=""))
        await self._write_down(answer, outcome, was_heard=was_heard)
        metrics.count_turn(_COUNTED[outcome])
        if not tell:
            return
        if error is not None:
            metrics.TURN_FAILURES.labels(error.code.name).inc()
            log.error("answer failed", error=str(error))
        await self._keep(answer, outcome, was_heard=was_heard)
        if utterance is not None:
            answer.waterfall.publish()
            if outcome == "completed":
                await self._responses.event(
                    TurnEventKind.TURN_EVENT_KIND_ASSISTANT_FINISHED,
                    utterance_id=utterance.utterance_id,
                    detail=utterance.unspoken_reason,
                    request_id=answer.request_id,
                )
        if utterance is not None or error is not None or answer.request_id:
            await self._responses.report(
                outcome,
                answer.waterfall,
                user=answer.user,
                turn=turn,
                utterance=utterance,
                error=error,
                read_count=answer.read_count,
                request_id=answer.request_id,
            )

    async def _write_down(self, answer: Answer, outcome: str, *, was_heard: bool) -> None:
        utterance, turn = answer.utterance, answer.turn
        if utterance is None or turn is None:
            return
        if answer.calls and answer.calls[0].index == turn.index:
            return  # nothing was said before the call, which has the turn's number
        if was_heard:
            await self._record.put(heard_so_far(turn, utterance, outcome))
        else:
            await self._record.drop(turn)

    async def _keep(self, answer: Answer, outcome: str, *, was_heard: bool) -> None:
        """The LLM has read what is in the record, no more, and the turn is closed."""
        self._prepared = None
        utterance, context = answer.utterance, self._branches.main
        if answer.aside and answer.context is not None:
            self._branches.free(answer.context)
        held_back = utterance is not None and utterance.made_count > utterance.token_count
        as_written = answer.aside or held_back or bool(answer.calls)
        too_long = context.size > FULL * self.manner.context_length
        if self._branches.overlap is not None and not (self.outdated or as_written):
            return  # the branch that listens was made of what was heard
        if self.outdated or outcome == "failed" or (too_long and (was_heard or as_written)):
            self._read_record()
        elif as_written:
            self._branches.drop_overlap()
            if not answer.aside:
                await context.rewind(answer.start)
            context.add(history.told(self._turns_of(answer)))
        elif utterance is None or not was_heard:
            await self._keep_nothing(answer)
        elif outcome == "interrupted":
            await context.rewind(answer.base + utterance.heard_tokens())
            context.add([items.interruption(), items.turn_end()])
        else:
            context.add([items.turn_end()])

    def _read_record(self) -> None:
        self.outdated, self._expected = False, None
        self._branches.drop_overlap()
        self._branches.main.replace(self._record.prompt(self.manner.prompt_limit))

    def _turns_of(self, answer: Answer) -> list[StoredTurn]:
        """What the record has of an answer."""
        turns = [answer.turn, *answer.calls]
        indices = {turn.index for turn in turns if turn is not None}
        return [turn for turn in self._record.turns if turn.index in indices]

    async def _keep_nothing(self, answer: Answer) -> None:
        """The LLM forgets an answer of which nothing was heard."""
        context = self._branches.main
        if answer.to_history:
            if answer.context is not None:
                await context.rewind(answer.start)
        elif answer.content:
            # Speech goes on where it was: before the end of the user's turn.
            await context.rewind(answer.content)
        elif answer.spoken is not None and not self.manner.aligned:
            # The words come again, with those that follow.
            await self._rewind_to(answer.spoken)


async def _done(work: asyncio.Task[None] | None) -> None:
    """Waits for work that goes on when the wait is cancelled."""
    if work is not None:
        await asyncio.shield(work)
