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
from dataclasses import dataclass, field

import grpc
import structlog

from minmo.model.operating_points import OperatingPoint
from minmo.rpc import metrics, tracing
from minmo.rpc.errors import DRAINING, StatusError, invalid_argument, unavailable
from minmo.rpc.health import Readiness
from minmo.rpc.queues import BoundedStream
from minmo.settings import OrchestratorSettings
from minmo.v1 import conversation_pb2, llm_pb2
from minmo.v1.conversation_pb2 import TurnEventKind
from services.orchestrator import traces
from services.orchestrator.answering import Answer, Answering
from services.orchestrator.branches import Branches
from services.orchestrator.census import Census
from services.orchestrator.codecs import Incoming, Outgoing
from services.orchestrator.commands import Commands
from services.orchestrator.decisions import Decisions
from services.orchestrator.departure import Departure
from services.orchestrator.duplex_turn_taking import DuplexTurnTaking
from services.orchestrator.hearing import Hearing
from services.orchestrator.link import Link
from services.orchestrator.listener import (
    Embeddings,
    Failed,
    Found,
    Heard,
    Listener,
    Lost,
    Probe,
)
from services.orchestrator.manner import Manner, Wishes, manner_of, turn_taking_of
from services.orchestrator.mind import Context, Epoch
from services.orchestrator.prober import Answered
from services.orchestrator.record import Record
from services.orchestrator.requests import Request
from services.orchestrator.responses import Responses
from services.orchestrator.session_settings import Settings
from services.orchestrator.store import Cache, SessionStore, StoredSession
from services.orchestrator.traces import Traces
from services.orchestrator.turn_taking import (
    Activity,
    Floor,
    FloorEvent,
    FloorState,
    Happened,
    milliseconds,
)
from services.orchestrator.user_turn import UserTurn
from services.orchestrator.utterance import Voice
from services.orchestrator.voices import Voices
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
_LEAVE_SECONDS = 1.0


@dataclass(frozen=True)
class Upstreams:
    """The services that a conversation needs."""

    encoder: grpc.aio.Channel
    llm: grpc.aio.Channel
    voice_decoder: grpc.aio.Channel
    store: SessionStore
    voices: Voices
    readiness: Readiness = field(default_factory=Readiness)


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


@dataclass(frozen=True)
class _Tick:
    """Nothing has happened for a moment."""


_Event = Heard | Answered | Request | _AnswerEnded | _Settled | _ClientClosed | _Tick


class Conversation:
    """A stream of `Converse`, from its configuration to its end.

    Args:
        settings: of the orchestrator.
        upstreams: the services.
        session: as the store has it; the stream holds its lease.
        stream_id: names this stream in the store.
        config: the stream's, checked.
        out: where responses go.
        traceparent: of what the client does with the stream; empty for none.
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
        traceparent: str = "",
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
            upstreams.llm,
            session.session_id,
            deadline_seconds=settings.llm_deadline_seconds,
            on_moved=self.read_soon,
        )
        epoch = Epoch(
            session.epoch,
            lambda: self._store.next_epoch(
                session.session_id, self._link.replica_id or self._model.replica_id
            ),
        )
        main = Context(
            self._link,
            epoch,
            session.cache.branch if session.cache is not None else "main",
            recovery_seconds=settings.recovery_seconds,
            on_outage=lambda lost: self._responses.outage("llm", lost),
        )
        self._branches = Branches(main, self._in_background, stream_id)
        self._answering: Answering | None = None
        self._model = llm_pb2.GetModelResponse()
        self.settling: asyncio.Task[None] | None = None
        """Writes a turn down that is not answered yet."""
        self._commands = Commands(self, self._record, self._responses, max_turns=settings.max_turns)
        self.turn: UserTurn | None = None
        """The user's turn that is open."""
        self._hearing = Hearing(
            session.session_id,
            self._listener,
            self._branches,
            self._store,
            in_background=self._in_background,
            on_answered=self._events.put,
        )
        self._paused_at: int | None = None
        self._decisions = Decisions()
        self._traces = Traces(session.session_id, settings.mode, traceparent)
        self.census = Census()
        """Counts the conversation while it runs."""
        self._last_audio = time.monotonic()
        self._closing = False
        self._departure = Departure(upstreams.readiness)
        self._left_cache = False

    # --- life of the stream

    async def run(self, requests: AsyncIterator[conversation_pb2.ConverseRequest]) -> None:
        """Serves the stream to its end; `requests` follow the configuration.

        Raises:
            StatusError: what ends the stream other than well.
        """
        # Whatever takes long from here on, the lease is kept.
        tasks = [asyncio.create_task(self._keep_lease())]
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
            await asyncio.shield(asyncio.create_task(self._end(tasks)))

    async def _resume(self) -> Answering:
        """Takes the session up where the stream before left it."""
        await self._responses.ready(
            self._session.session_id,
            len(self._record),
            self._settings.mode,
            await self._upstreams.voices.names(),
        )
        self._model = await self._link.model()
        self.use(self.chosen)
        manner = self.manner_of(self.chosen)
        self._record.system_text = manner.system_text
        answering = Answering(
            self._session.session_id,
            manner,
            record=self._record,
            branches=self._branches,
            responses=self._responses,
            on_ended=lambda answer, error: self._events.put(_AnswerEnded(answer, error)),
            traces=self._traces,
        )
        self._answering = answering
        question = await self._record.close_open_answer()
        context = self._branches.main
        context.query_positions = manner.voice.query_positions
        prompt = self._record.prompt(manner.prompt_limit, before=question)
        cache = self._session.cache
        if question is None and cache is not None and self._has_read(cache):
            log.info("the LLM has read the history already", positions=cache.position)
            context.resume(prompt, cache.position)
        else:
            context.replace(prompt)
        if question is not None:
            self.floor.assistant_starts()
            waterfall = Waterfall(time.monotonic())
            if question.role == "tool" or question.wishes:
                context.replace(self._record.prompt(manner.prompt_limit))
                wishes = Wishes.from_json(question.wishes)
                answering.begin_to_history(waterfall, wishes, request_id="")
            else:
                answering.begin(waterfall, user=question)
        else:
            self._in_background(context.sync())
        return answering

    def _has_read(self, cache: Cache) -> bool:
        """Whether a cache that the stream before has left is there, and is of this history."""
        return cache.replica_id == self._model.replica_id and cache.digest == self._record.digest()

    async def check_voice(self, name: str, field: str) -> None:
        """Raises StatusError: INVALID_ARGUMENT for a voice that does not exist."""
        await self._upstreams.voices.check(name, field)

    def manner_of(self, chosen: Settings) -> Manner:
        """How answers are made with these settings.

        Raises:
            StatusError: INVALID_ARGUMENT, the tools leave no room for a conversation.
        """
        known = self._upstreams.voices.latest
        voice = Voice(
            self._upstreams.voice_decoder,
            self._outgoing.pcm_format,
            chosen.voice,
            chosen.instruct,
            self._settings.voice_decoder_deadline_seconds,
            known.reads_hidden_states if known.names else self.aligned,
            known.query_positions,
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
        points = [
            OperatingPoint(point.eagerness, point.assistant_turn, point.user_turn)
            for point in (self._model.operating_points if self.aligned else ())
        ]
        taking, self._silence_ms = turn_taking_of(chosen, self._settings, points)
        self._hearing.probes = isinstance(taking, DuplexTurnTaking)
        self.floor.decide_by(taking, pause_ms=min(PAUSE_MS, self._silence_ms))

    async def _end(self, tasks: list[asyncio.Task[None]]) -> None:
        """Leaves everything as the next stream wants to find it."""
        if self._answering is not None:
            self._answering.drop_draft()
        for task in [*tasks, *self._background]:
            task.cancel()
        await asyncio.gather(*tasks, *self._background, return_exceptions=True)
        if self.settling is not None:
            self.settling.cancel()
            await asyncio.gather(self.settling, return_exceptions=True)
        if self.turn is not None:
            self.turn.cancel()
            traces.end(self.turn.trace, "cancelled")
        await self._hearing.stop()
        with contextlib.suppress(StatusError, TimeoutError):
            async with asyncio.timeout(_END_SECONDS):
                if self._answering is not None:
                    await self._answering.stop("the stream ended", tell=False)
                if not self._left_cache:
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
                    self._departure.took_audio(sequence - 1, self._listener.position)
                case "playback" if not answering.corrects(request.playback):
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
                    if kind != "playback":
                        self._departure.took_request()
        # A client that vanishes ends its requests too, an instant before the call is cancelled.
        await asyncio.sleep(_VANISH_SECONDS)
        await self._events.put(_ClientClosed())

    async def _keep_lease(self) -> None:
        while True:
            await asyncio.sleep(_LEASE_REFRESH_SECONDS)
            try:
                await self._store.refresh(self._session.session_id, self._stream_id)
            except StatusError as failure:
                # A lease that runs out meanwhile is still this stream's, if nobody takes it.
                if failure.code is not grpc.StatusCode.UNAVAILABLE:
                    raise
                log.warning("the lease was not kept", error=str(failure))

    # --- the loop

    async def _act(self, answering: Answering) -> None:
        give_up: float | None = None
        while True:
            event = await self._next_event()
            if event is not None:
                await self._on_event(event, answering)
            self.census.is_now(self._goes_on(answering))
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
            if self._departure.is_due and not self._closing:
                await self._leave_if_at_rest(answering)

    async def _next_event(self) -> _Event | None:
        """The next event; None when the user's microphone went off in the middle of a turn."""
        while True:
            soon = self._closing or self._departure.is_due
            try:
                async with asyncio.timeout(0.05 if soon else 0.25):
                    return await self._events.get()
            except TimeoutError:
                if self._closing:
                    return None
                if self._answering is not None:
                    self.census.is_now(self._goes_on(self._answering))
                off_for = time.monotonic() - self._last_audio
                limit = self._silence_ms / 1000 + _MICROPHONE_OFF_SECONDS
                speaks = self.floor.state is FloorState.USER
                if speaks and off_for > limit and self._listener.heard_all:
                    return None
                if self._departure.is_due:
                    return _Tick()

    async def _leave_if_at_rest(self, answering: Answering) -> None:
        """Ends the stream if nobody would notice.

        Raises:
            StatusError: UNAVAILABLE, for a client that does not understand that it should go.
        """
        context = self._branches.main
        if not self._is_at_rest(answering):
            return
        if context.is_read:
            await self._leave_cache(context)
        elif not self._departure.is_late:
            self.read_soon()
        if self._is_at_rest(answering):
            log.info("leaving between turns", left_cache=self._left_cache)
            moving = self._departure.moving(self.floor.last, self.floor.input_start)
            await self._responses.moving(moving)
            # Ending the call now would take the message from a client that is writing.
            await asyncio.sleep(_LEAVE_SECONDS)
            raise unavailable(
                "the server is stopping: open the session again, another one goes on",
                reason=DRAINING,
            )
        # Whatever has come meanwhile goes on with it.
        self._left_cache = False

    def _is_at_rest(self, answering: Answering) -> bool:
        """Whether nobody speaks, and nothing is under way."""
        waits = (
            answering.current
            or answering.unheard
            or self.turn
            or self.settling
            or self._commands.waiting
            or (self._background and not self._departure.is_late)
        )
        return (
            self.floor.state is FloorState.QUIET
            and not waits
            and self._events.empty()
            and self._responses.are_read
        )

    async def _leave_cache(self, context: Context) -> None:
        """Leaves what the LLM has read to the next stream."""
        if not self._link.replica_id:
            return
        cache = Cache(
            self._link.replica_id, context.branch, context.size, digest=self._record.digest()
        )
        try:
            await self._store.put_cache(self._session.session_id, self._stream_id, cache)
            self._left_cache = True
        except StatusError as failure:
            log.warning("the next stream has to read everything again", error=str(failure))

    async def _on_event(self, event: _Event, answering: Answering) -> None:
        match event:
            case Activity():
                happened = self.floor.hear(event)
                self._responses.position = self.floor.last.end
                await self._on_floor(happened, answering)
                turn = None if self.aligned else self.turn
                if turn is not None and turn.is_long(event.speech_end):
                    self._look(turn, event.speech_end)
            case Embeddings() | Probe() | Answered():
                await self._on_speech(event, answering)
            case Lost() | Found() | Failed():
                await self._on_encoder(event)
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

    async def _on_speech(self, event: Embeddings | Probe | Answered, answering: Answering) -> None:
        match event:
            case Embeddings():
                await self._on_embeddings(event, answering)
            case Probe():
                self._hearing.ask(event)
            case Answered(segment_id, said):
                if self._hearing.is_of_segment(segment_id):
                    await self._on_floor(self.floor.predict(said), answering)

    async def _on_encoder(self, event: Lost | Found | Failed) -> None:
        match event:
            case Lost(detail):
                await self._responses.outage("encoder", True, detail)
            case Found():
                await self._responses.outage("encoder", False)
            case Failed(error):
                raise error

    # --- who has the floor

    async def _on_floor(self, events: list[FloorEvent], answering: Answering) -> None:
        for event in events:
            self._decisions.note(event, self.floor.last.end)
            match event.what:
                case Happened.SPEECH_STARTED:
                    await self._on_speech_started(event, answering)
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
                case Happened.MAY_END:
                    if self.turn is not None and self._could_be_answered(event.end):
                        with tracing.within(self.turn.trace):
                            answering.draft()
                case Happened.TURN_ENDED | Happened.TURN_TOO_LONG:
                    await self.end_turn(event, answering)
                case Happened.BARGE_IN:
                    await self._on_barge_in(event, answering)
                case Happened.BACK_CHANNEL:
                    await self.stop_listening_over_answer()

    async def _on_speech_started(self, event: FloorEvent, answering: Answering) -> None:
        self._paused_at = None
        await self._responses.event(
            TurnEventKind.TURN_EVENT_KIND_USER_SPEECH_STARTED, position=event.start
        )
        answering.drop_draft()
        if self.floor.state is FloorState.USER:
            await self.open_turn(self.floor.turn_start, answering)
        elif self.aligned and self._listens_over_answers:
            await self._hearing.listen_over(self.floor.turn_start, answering)

    async def _on_barge_in(self, event: FloorEvent, answering: Answering) -> None:
        await self._commands.give_up_waiting("the user spoke")
        since = self._listener.arrival(event.start)
        await answering.stop("the user spoke", since=since)
        turn = await self.open_turn(self.floor.turn_start, answering)
        if turn is not None:
            turn.took_floor = True
        await self._commands.go_on(answering)

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
        if self.turn is None and answering.unheard is None:
            # Nobody will ask for the words of a turn that was answered.
            overlaps = self.floor.state is FloorState.OVERLAP
            self._listener.need_from(self.floor.turn_start if overlaps else self.floor.last.end)
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
            self.turn.trace = self._traces.begin(self._listener.arrival(start))
        else:
            self.turn = self.new_turn(start, answering)
        self._listener.need_from(self.turn.start)
        if not self.aligned:
            return self.turn
        goes_on = goes_on or bool(self.turn.carried)
        await self._hearing.begin_turn(self.turn, start, width=self._model.width, goes_on=goes_on)
        return self.turn

    def new_turn(self, start: int, answering: Answering, *, began: float | None = None) -> UserTurn:
        """A turn; it goes on with the one before, if nothing was heard of its answer.

        Args:
            start: where it began in the user's audio, in samples at 16 kHz.
            answering: gives the answers.
            began: when (monotonic seconds); by default when the audio there came.
        """
        unheard = answering.unheard
        if unheard is None or unheard.user is None or unheard.spoken is None:
            busy = answering.current is not None
            turn = UserTurn(start, checkpoint=None if busy else len(self._branches.main))
        else:
            carried, checkpoint = unheard.user.text, unheard.spoken.checkpoint
            turn = UserTurn(start, carried=carried, checkpoint=checkpoint)
        turn.trace = self._traces.begin(self._listener.arrival(start) if began is None else began)
        return turn

    async def drop_turn(self, answering: Answering) -> None:
        """The turn that is open, if there is one, is forgotten."""
        if self.turn is None:
            return
        turn, self.turn = self.turn, None
        turn.cancel()
        traces.end(turn.trace, "cancelled")
        if self.aligned:
            await self._hearing.drop()
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
        with tracing.within(turn.trace):
            await self._hand_over(turn, event, answering, request)

    async def _hand_over(
        self, turn: UserTurn, event: FloorEvent, answering: Answering, request: Request | None
    ) -> None:
        """A turn that has ended goes to whoever answers it, or writes it down."""
        waits = self.chosen.turn_detection.waits
        spoken_at = self._listener.arrival(event.end) if request is None else request.arrived
        request_id = ""
        if request is not None:
            request_id = request.message.request_id
            self._decisions.client_ended()
            turn.ended_by_client = True
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
            over = await self._hearing.end_turn(turn, event.end, answering)
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
            await self._hearing.drop()

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

    async def _on_embeddings(self, part: Embeddings, answering: Answering) -> None:
        if await self._hearing.take(part, self.turn, answering) is None:
            return
        if part.matrix.rows and self.turn is not None:
            index = self._record.next_index
            await self._responses.user_text(index, self.turn.known_words(), final=False)
        if not part.final:
            self._expect_answer(answering)

    def _expect_answer(self, answering: Answering) -> None:
        """Lets the LLM get ready to answer when it has read all that was said before a pause."""
        paused_at = self._paused_at
        # The predictor is asked after what the user said: nothing may stand behind it.
        if paused_at is None or self._hearing.probes or not self._could_be_answered(paused_at):
            return
        if self.turn is not None and answering.expect_answer():
            with tracing.within(self.turn.trace):
                self._in_background(self._branches.main.sync())

    def _could_be_answered(self, end: int) -> bool:
        """Whether all is known that was said, if the user's turn has ended at `end`."""
        turn, waits = self.turn, self.chosen.turn_detection.waits
        has_words = turn is not None and bool(turn.known_words())
        return has_words and not waits and self._hearing.has_heard(end)

    async def stop_listening_over_answer(self) -> None:
        """What was said over an answer is forgotten."""
        await self._hearing.stop_over()

    # --- small things

    def _goes_on(self, answering: Answering) -> metrics.SessionState:
        if self.floor.state is FloorState.USER:
            return "listening"
        if answering.current is None:
            return "idle"
        utterance = answering.current.utterance
        return "speaking" if utterance is not None and utterance.audible else "thinking"

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
