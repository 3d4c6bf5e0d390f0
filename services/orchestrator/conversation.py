"""One conversation on one stream: what the user does, and what follows from it.

One loop takes events in order (voice activity, embeddings, what the client asks, the end of an
answer) and acts on them. Who has the floor is decided in `turn_taking`, an answer is given in
`answering`, what the client asks for in `commands`, what the LLM has read is kept in `mind`, the
history in `record`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass

import grpc
import structlog

from minmo.rpc import metrics
from minmo.rpc.errors import StatusError, invalid_argument
from minmo.rpc.queues import BoundedStream
from minmo.settings import OrchestratorSettings
from minmo.v1 import common_pb2, conversation_pb2, llm_pb2
from minmo.v1.conversation_pb2 import TurnEventKind
from services.orchestrator import items
from services.orchestrator.answering import Answer, Answering
from services.orchestrator.branches import Branches
from services.orchestrator.codecs import Incoming, Outgoing
from services.orchestrator.commands import Commands
from services.orchestrator.link import Link
from services.orchestrator.listener import Embeddings, Failed, Found, Heard, Listener, Lost
from services.orchestrator.manner import Manner, manner_of, turn_taking_of
from services.orchestrator.mind import Context, Epoch
from services.orchestrator.record import Record
from services.orchestrator.requests import Request
from services.orchestrator.responses import Responses
from services.orchestrator.session_settings import Settings
from services.orchestrator.store import SessionStore, StoredSession
from services.orchestrator.turn_taking import (
    Activity,
    Floor,
    FloorEvent,
    FloorState,
    Happened,
    milliseconds,
    samples,
)
from services.orchestrator.user_turn import POSTROLL_MS, PREROLL_MS, Speech, UserTurn
from services.orchestrator.utterance import Voice
from services.orchestrator.waterfall import Waterfall

log = structlog.get_logger()

PAUSE_MS = 200.0
"""Silence after which the LLM gets ready to answer, in the hope that the turn has ended."""
_EVENTS_LIMIT = 1024
_LEASE_REFRESH_SECONDS = 1.5
_MICROPHONE_OFF_SECONDS = 0.3
_DRAIN_SECONDS = 10.0
_VANISH_SECONDS = 0.1
_END_SECONDS = 5.0


@dataclass(frozen=True)
class Upstreams:
    """The services that a conversation needs."""

    encoder: grpc.aio.Channel
    llm: grpc.aio.Channel
    voice_decoder: grpc.aio.Channel
    store: SessionStore


@dataclass(frozen=True)
class _AnswerEnded:
    """An answer has ended by itself."""

    answer: Answer
    error: StatusError | None


@dataclass(frozen=True)
class _Settled:
    """A turn that is not answered yet has been written down, or given up."""

    task: asyncio.Task[None]


@dataclass(frozen=True)
class _ClientClosed:
    """The client will send no more."""


_Event = Heard | Request | _AnswerEnded | _Settled | _ClientClosed


class Conversation:
    """A stream of `Converse`, from its configuration to its end.

    Args:
        settings: of the orchestrator.
        upstreams: the services.
        session: as the store has it; the stream holds its lease.
        stream_id: names this stream in the store.
        config: the stream's, checked.
        out: where responses go.
    """

    def __init__(
        self,
        settings: OrchestratorSettings,
        upstreams: Upstreams,
        session: StoredSession,
        *,
        stream_id: str,
        config: conversation_pb2.ConverseConfig,
        out: BoundedStream[conversation_pb2.ConverseResponse],
    ) -> None:
        self._settings = settings
        self._upstreams = upstreams
        self._store = upstreams.store
        self._session = session
        self._stream_id = stream_id
        self._config = config
        self.aligned = settings.mode == "aligned"
        """Whether the LLM reads speech embeddings."""
        self._events: asyncio.Queue[_Event] = asyncio.Queue(_EVENTS_LIMIT)
        self._background: set[asyncio.Future[None]] = set()
        self._incoming = Incoming(config.input_format, max_seconds=settings.max_frame_seconds)
        self._outgoing = Outgoing(config.output_format)
        self._responses = Responses(out, self._outgoing)
        self._record = Record(self._store, session, stream_id, "")
        self._listener = Listener(
            upstreams.encoder,
            self._incoming.pcm_format,
            self._events.put,
            deadline_seconds=settings.encoder_deadline_seconds,
            session=session.session_id,
        )
        self.chosen = session.settings
        """The session's settings."""
        taking, self._silence_ms = turn_taking_of(self.chosen, settings)
        self.floor = Floor(
            taking,
            pause_ms=min(PAUSE_MS, self._silence_ms),
            max_turn_ms=settings.max_turn_seconds * 1000,
        )
        """Who speaks."""
        self._link = Link(
            upstreams.llm, session.session_id, deadline_seconds=settings.llm_deadline_seconds
        )
        epoch = Epoch(
            session.epoch,
            lambda: self._store.next_epoch(session.session_id, self._link.replica_id),
        )
        main = Context(
            self._link,
            epoch,
            "main",
            recovery_seconds=settings.recovery_seconds,
            on_outage=lambda lost: self._responses.outage("llm", lost),
        )
        self._branches = Branches(main, self._in_background)
        self._answering: Answering | None = None
        self._model = llm_pb2.GetModelResponse()
        self.settling: asyncio.Task[None] | None = None
        """Writes a turn down that is not answered yet."""
        self._commands = Commands(self, self._record, self._responses, max_turns=settings.max_turns)
        self.turn: UserTurn | None = None
        """The user's turn that is open."""
        self._speech: Speech | None = None
        self._overlap_checkpoint: int | None = 0
        self._may_resume_speech = True
        self._paused_at: int | None = None
        self._last_audio = time.monotonic()
        self._closing = False

    # --- life of the stream

    async def run(self, requests: AsyncIterator[conversation_pb2.ConverseRequest]) -> None:
        """Serves the stream to its end; `requests` follow the configuration.

        Raises:
            StatusError: what ends the stream other than well.
        """
        # Whatever takes long from here on, the lease is kept.
        tasks = [asyncio.create_task(self._keep_lease())]
        metrics.ACTIVE_SESSIONS.inc()
        try:
            answering = await self._resume()
            loop = asyncio.create_task(self._act(answering))
            tasks += [
                loop,
                asyncio.create_task(self._listener.run()),
                asyncio.create_task(self._read(requests, answering)),
            ]
            running = set(tasks)
            while not loop.done():
                ended, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    task.result()
        finally:
            metrics.ACTIVE_SESSIONS.dec()
            await asyncio.shield(asyncio.create_task(self._end(tasks)))

    async def _resume(self) -> Answering:
        """Takes the session up where the stream before left it."""
        await self._responses.ready(
            self._session.session_id, len(self._record), self._settings.mode
        )
        self._model = await self._link.model()
        manner = self.manner_of(self.chosen)
        self._record.system_text = manner.system_text
        answering = Answering(
            self._session.session_id,
            manner,
            record=self._record,
            branches=self._branches,
            responses=self._responses,
            on_ended=lambda answer, error: self._events.put(_AnswerEnded(answer, error)),
        )
        self._answering = answering
        question = await self._record.close_open_answer()
        context = self._branches.main
        context.replace(self._record.prompt(manner.prompt_limit, before=question))
        if question is not None:
            self.floor.assistant_starts()
            answering.begin(Waterfall(time.monotonic()), user=question)
        else:
            self._in_background(context.sync())
        return answering

    def manner_of(self, chosen: Settings) -> Manner:
        """How answers are made with these settings.

        Raises:
            StatusError: INVALID_ARGUMENT, the tools leave no room for a conversation.
        """
        voice = Voice(
            self._upstreams.voice_decoder,
            self._outgoing.pcm_format,
            chosen.voice,
            chosen.instruct,
            self._settings.voice_decoder_deadline_seconds,
            reads_hidden_states=self.aligned,
        )
        return manner_of(
            chosen,
            self._settings,
            context_length=self._model.context_length,
            voice=voice,
            reports_playback=self._config.reports_playback,
        )

    def use(self, chosen: Settings) -> None:
        """These are the session's settings from here on; turns end as they say."""
        self.chosen = chosen
        taking, self._silence_ms = turn_taking_of(chosen, self._settings)
        self.floor.decide_by(taking, pause_ms=min(PAUSE_MS, self._silence_ms))

    async def _end(self, tasks: list[asyncio.Task[None]]) -> None:
        """Leaves everything as the next stream wants to find it."""
        for task in [*tasks, *self._background]:
            task.cancel()
        await asyncio.gather(*tasks, *self._background, return_exceptions=True)
        if self.settling is not None:
            self.settling.cancel()
            await asyncio.gather(self.settling, return_exceptions=True)
        if self.turn is not None:
            self.turn.cancel()
        with contextlib.suppress(StatusError, TimeoutError):
            async with asyncio.timeout(_END_SECONDS):
                if self._answering is not None:
                    await self._answering.stop("the stream ended", tell=False)
                await self._branches.main.close(whole_session=True)
        await self._link.close()

    async def _read(
        self,
        requests: AsyncIterator[conversation_pb2.ConverseRequest],
        answering: Answering,
    ) -> None:
        """Takes what the client sends. Audio and playback take the short way."""
        sequence = 0
        async for request in requests:
            match request.WhichOneof("message"):
                case "audio":
                    if request.audio.sequence != sequence:
                        raise invalid_argument(
                            "audio.sequence",
                            f"is {request.audio.sequence} where {sequence} was expected: audio "
                            "is missing or came twice",
                        )
                    sequence += 1
                    pcm = self._incoming.pcm(request.audio.data)
                    self._last_audio = time.monotonic()
                    if pcm:
                        await self._listener.feed(pcm)
                case "playback" if not answering.ended_early(request.playback):
                    await answering.played(request.playback)
                case "config":
                    raise invalid_argument("config", "is sent once, as the first message")
                case None:
                    raise invalid_argument(
                        "message", "is not set, or of a kind that this server does not know"
                    )
                case kind:
                    position, arrived = self._listener.position, time.monotonic()
                    if kind in ("commit_input", "clear_input"):
                        # All that was heard of the turn is told before it ends.
                        await self._listener.catch_up()
                    await self._events.put(Request(request, position, arrived))
        # A client that vanishes ends its requests too, an instant before the call is cancelled.
        await asyncio.sleep(_VANISH_SECONDS)
        await self._events.put(_ClientClosed())

    async def _keep_lease(self) -> None:
        while True:
            await asyncio.sleep(_LEASE_REFRESH_SECONDS)
            await self._store.refresh(self._session.session_id, self._stream_id)

    # --- the loop

    async def _act(self, answering: Answering) -> None:
        give_up: float | None = None
        while True:
            event = await self._next_event()
            if event is not None:
                await self._on_event(event, answering)
            if self._closing:
                if give_up is None:
                    give_up = time.monotonic() + _DRAIN_SECONDS
                heard_all = self._listener.heard_all or time.monotonic() > give_up
                if heard_all and self._events.empty():
                    await self._on_floor(self.floor.silence(), answering)
                    busy = answering.current or self.settling or self._commands.waiting
                    if not busy and self._events.empty():
                        return
            elif event is None:
                await self._on_floor(self.floor.silence(), answering)

    async def _next_event(self) -> _Event | None:
        """The next event; None when the user's microphone went off in the middle of a turn."""
        while True:
            try:
                async with asyncio.timeout(0.05 if self._closing else 0.25):
                    return await self._events.get()
            except TimeoutError:
                if self._closing:
                    return None
                off_for = time.monotonic() - self._last_audio
                limit = self._silence_ms / 1000 + _MICROPHONE_OFF_SECONDS
                speaks = self.floor.state is FloorState.USER
                if speaks and off_for > limit and self._listener.heard_all:
                    return None

    async def _on_event(self, event: _Event, answering: Answering) -> None:
        match event:
            case Activity():
                happened = self.floor.hear(event)
                self._responses.position = self.floor.last.end
                await self._on_floor(happened, answering)
                turn = None if self.aligned else self.turn
                if turn is not None and turn.is_long(event.speech_end):
                    self._look(turn, event.speech_end)
            case Embeddings():
                await self._on_embeddings(event, answering)
            case Lost(detail):
                await self._responses.outage("encoder", True, detail)
            case Found():
                await self._responses.outage("encoder", False)
            case Failed(error):
                raise error
            case _AnswerEnded(answer, error):
                # One that was stopped meanwhile has been dealt with.
                if answer is answering.current:
                    await self._on_answer_ended(answer, error, answering)
            case _ClientClosed():
                self._closing = True
                answering.client_is_done()
            case _Settled(task):
                self.settling = None
                task.result()
                await self._commands.go_on(answering)
                if self.floor.state is FloorState.USER:
                    await self.open_turn(self.floor.turn_start, answering)
            case Request():
                await self._commands.take(event, answering)

    # --- who has the floor

    async def _on_floor(self, events: list[FloorEvent], answering: Answering) -> None:
        for event in events:
            match event.what:
                case Happened.SPEECH_STARTED:
                    self._paused_at = None
                    await self._responses.event(
                        TurnEventKind.TURN_EVENT_KIND_USER_SPEECH_STARTED, position=event.start
                    )
                    if self.floor.state is FloorState.USER:
                        await self.open_turn(self.floor.turn_start, answering)
                    elif self.aligned and self._listens_over_answers:
                        await self._listen_over_answer(answering)
                case Happened.SPEECH_STOPPED:
                    await self._responses.event(
                        TurnEventKind.TURN_EVENT_KIND_USER_SPEECH_STOPPED, position=event.end
                    )
                case Happened.PAUSE:
                    self._paused_at = event.end
                    if self.aligned:
                        self._expect_answer(answering)
                    elif self.turn is not None:
                        self._look(self.turn, event.end)
                case Happened.TURN_ENDED | Happened.TURN_TOO_LONG:
                    await self.end_turn(event, answering)
                case Happened.BARGE_IN:
                    metrics.BARGE_INS.inc()
                    await self._commands.give_up_waiting("the user spoke")
                    await answering.stop("the user spoke")
                    await self.open_turn(self.floor.turn_start, answering)
                    await self._commands.go_on(answering)
                case Happened.BACK_CHANNEL:
                    await self.stop_listening_over_answer()

    async def _on_answer_ended(
        self, answer: Answer, error: StatusError | None, answering: Answering
    ) -> None:
        ends_stream = error is not None and (
            error.code is grpc.StatusCode.ABORTED or error.reason == "READER_TOO_SLOW"
        )
        if error is not None and ends_stream:
            raise error
        await answering.ended(answer, error)
        await self.give_floor_back(answering)
        self._in_background(self._branches.main.sync())
        await self._commands.go_on(answering)

    @property
    def _listens_over_answers(self) -> bool:
        return self.chosen.turn_detection.interruptible

    async def give_floor_back(self, answering: Answering) -> None:
        """No answer is under way any more: a user who speaks has a turn."""
        self.floor.assistant_ends()
        if self.floor.state is FloorState.USER:
            await self.open_turn(self.floor.turn_start, answering)
        else:
            await self.stop_listening_over_answer()

    # --- the user's turn

    async def open_turn(self, start: int, answering: Answering) -> UserTurn | None:
        """The user has the floor from `start` on; None while the turn before is written down."""
        if self.turn is not None or self.settling is not None:
            return self.turn
        unheard = answering.unheard
        goes_on = unheard is not None and unheard.user is None
        if unheard is not None and unheard.spoken is not None and goes_on:
            # Its words were not even known: it goes on as if it had not ended.
            self.turn, answering.unheard = unheard.spoken, None
        else:
            self.turn = self.new_turn(start, answering)
        self._listener.need_from(self.turn.start)
        if not self.aligned:
            return self.turn
        if self._branches.overlap is not None:
            self._branches.adopt_overlap()
            self.turn.checkpoint = self._overlap_checkpoint
            if self._speech is not None:
                self.turn.speech.append(self._speech)
            return self.turn
        if not goes_on and not self.turn.carried:
            context = self._branches.main
            context.add([items.role_start(common_pb2.ROLE_USER)])
            if self._may_resume_speech:
                # The stream before may have ended in the middle of the turn.
                stored, words = await self._store.embeddings(self._session.session_id)
                context.add([items.embeddings(self._matrix(rows)) for rows in stored])
                self.turn.speech.append(Speech(0, words))
            else:
                await self._store.clear_embeddings(self._session.session_id)
        self._may_resume_speech = False
        self.turn.speech.append(await self._listen_closely(start))
        return self.turn

    def new_turn(self, start: int, answering: Answering) -> UserTurn:
        """A turn; it goes on with the one before, if nothing was heard of its answer."""
        unheard = answering.unheard
        if unheard is None or unheard.user is None or unheard.spoken is None:
            busy = answering.current is not None
            return UserTurn(start, checkpoint=None if busy else len(self._branches.main))
        return UserTurn(start, carried=unheard.user.text, checkpoint=unheard.spoken.checkpoint)

    async def drop_turn(self, answering: Answering) -> None:
        """The turn that is open, if there is one, is forgotten."""
        if self.turn is None:
            return
        turn, self.turn = self.turn, None
        turn.cancel()
        if self.aligned:
            await self._drop_speech()
        await answering.forget(turn)

    def _look(self, turn: UserTurn, end: int) -> None:
        """Recognises the turn up to `end`; the LLM may read the words while we wait for more."""

        def on_words(words: str) -> None:
            answering = self._answering
            if turn is not self.turn or not words or answering is None:
                return
            index = self._record.next_index
            self._in_background(self._responses.user_text(index, words, final=False))
            if not self.chosen.turn_detection.waits:
                self._in_background(answering.prepare(turn, words))

        turn.look(self._listener, end, on_words)

    async def end_turn(
        self, event: FloorEvent, answering: Answering, request: Request | None = None
    ) -> None:
        """The user's turn has ended: it is answered, or waits for an answer to be asked for."""
        waits = self.chosen.turn_detection.waits
        if self.settling is not None:
            self._commands.waiting.append(event)
            self.floor.assistant_ends()
            return
        turn, self.turn = self.turn, None
        if turn is None and waits and request is None:
            # It ended while the one before was written down.
            turn = await self.open_turn(event.start, answering)
            self.turn = None
        if turn is None:
            await self.give_floor_back(answering)
            return
        spoken_at = self._listener.arrival(event.end) if request is None else request.arrived
        request_id = "" if request is None else request.message.request_id
        waterfall = Waterfall(spoken_at)
        waterfall.add("endpointing", spoken_at)
        await self._responses.event(
            TurnEventKind.TURN_EVENT_KIND_USER_TURN_ENDED,
            position=event.end,
            request_id=request_id,
        )
        spoken_ms = max(1, round(milliseconds(event.end - event.start)))
        over = False
        if self.aligned:
            over = await self._end_listening(turn, event.end, answering)
        else:
            self._look(turn, event.end)
        if waits:
            self._settle(turn, spoken_ms, answering, request_id)
            if request is None:
                self.floor.assistant_ends()
        else:
            if request is not None:
                self.floor.assistant_starts()
            answering.begin(waterfall, spoken=turn, spoken_ms=spoken_ms, request_id=request_id)
        if over:
            await self._drop_speech()

    def _settle(
        self, turn: UserTurn, spoken_ms: int, answering: Answering, request_id: str
    ) -> None:
        async def settle() -> None:
            try:
                await answering.settle(turn, spoken_ms, request_id=request_id)
            except StatusError as error:
                if error.code is grpc.StatusCode.ABORTED:
                    raise
                await answering.nothing_settled(turn, str(error), request_id)

        self.settling = asyncio.create_task(settle())
        self.settling.add_done_callback(self._settled)

    def _settled(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            self._in_background(self._events.put(_Settled(task)))

    # --- speech embeddings (aligned mode)

    async def _listen_closely(self, start: int) -> Speech:
        """Asks for the embeddings of what the user says from `start` on."""
        start = max(0, start - samples(PREROLL_MS))
        self._speech = Speech(await self._listener.start_segment(start), end=start)
        return self._speech

    async def _end_listening(self, turn: UserTurn, end: int, answering: Answering) -> bool:
        """The user's turn ends at `end`; whether all of it was heard already."""
        if self._has_heard(end):
            # What is left of the segment is silence: nothing is to be waited for.
            answering.embeddings_over.set()
            return True
        answering.embeddings_over.clear()
        last = self._end_of_speech(end)
        await self._listener.end_segment(last if turn.latest is None else min(last, turn.latest))
        return False

    async def _drop_speech(self) -> None:
        """Asks for no more of them; those that came are in the LLM, or of no use."""
        self._speech = None
        await self._listener.drop_segment()
        await self._store.clear_embeddings(self._session.session_id)

    async def _on_embeddings(self, part: Embeddings, answering: Answering) -> None:
        speech = self._speech
        if speech is None or part.segment_id != speech.segment_id:
            return
        speech.text, speech.end = part.text, part.end
        if part.matrix.rows:
            await self._read_on(part.matrix, answering)
        if part.final:
            self._speech = None
            await self._store.clear_embeddings(self._session.session_id)
            answering.embeddings_over.set()
        else:
            self._expect_answer(answering)

    async def _read_on(self, matrix: common_pb2.FloatMatrix, answering: Answering) -> None:
        """The LLM reads what the user says while it is said."""
        context = self._branches.listening
        if context is self._branches.main:
            await answering.speech_goes_on()
        context.add([items.embeddings(matrix)])
        self._in_background(context.sync())
        turn, speech = self.turn, self._speech
        words = turn.heard_words() if turn is not None else speech.text if speech else ""
        await self._store.push_embeddings(self._session.session_id, matrix.data, words)
        if turn is not None:
            index = self._record.next_index
            await self._responses.user_text(index, turn.known_words(), final=False)

    def _expect_answer(self, answering: Answering) -> None:
        """Lets the LLM get ready to answer when it has read all that was said before a pause."""
        turn, paused_at = self.turn, self._paused_at
        if turn is None or paused_at is None or not turn.known_words():
            return
        if self.chosen.turn_detection.waits:
            return
        if self._has_heard(paused_at) and answering.expect_answer():
            self._in_background(self._branches.main.sync())

    def _has_heard(self, end: int) -> bool:
        """Whether the LLM has been given all that was said before a pause that began at `end`."""
        return self._speech is not None and self._speech.end >= self._end_of_speech(end)

    def _end_of_speech(self, end: int) -> int:
        """Up to where speech is listened to that ended at `end`: detectors are early."""
        return min(end + samples(POSTROLL_MS), self._listener.heard_until)

    async def _listen_over_answer(self, answering: Answering) -> None:
        """A branch of the LLM's cache listens to the user while the assistant speaks."""
        answer = answering.current
        if answer is None or self._branches.overlap is not None:
            return
        heard = answer.utterance.heard_tokens() if answer.utterance is not None else 0
        if heard:
            overlap = await self._branches.open_overlap(answer.base + heard)
            overlap.add([items.interruption(), items.turn_end()])
            self._overlap_checkpoint = len(overlap)
            overlap.add([items.role_start(common_pb2.ROLE_USER)])
        elif answer.content:
            # Nothing was heard yet: the user goes on with the turn before.
            await self._branches.open_overlap(answer.content)
            self._overlap_checkpoint = answer.spoken.checkpoint if answer.spoken is not None else 0
        else:
            return
        await self._store.clear_embeddings(self._session.session_id)
        await self._listen_closely(self.floor.turn_start)

    async def stop_listening_over_answer(self) -> None:
        """What was said over an answer is forgotten."""
        if self._branches.overlap is not None:
            await self._drop_speech()
            self._branches.drop_overlap()

    def _matrix(self, rows: bytes) -> common_pb2.FloatMatrix:
        width = self._model.width
        return common_pb2.FloatMatrix(data=rows, rows=len(rows) // (4 * width), columns=width)

    # --- small things

    def read_soon(self) -> None:
        """The LLM reads what it has not read, while nobody waits for it."""
        self._in_background(self._branches.main.sync())

    def _in_background(self, work: Awaitable[None]) -> None:
        """Does work whose failure the next answer meets again and reports."""

        async def guarded() -> None:
            try:
                await work
            except StatusError as failure:
                log.warning("background work failed", error=str(failure))

        task = asyncio.ensure_future(guarded())
        self._background.add(task)
        task.add_done_callback(self._background.discard)
