"""MinMo's public API: checks what comes in, and hands it on."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import uuid
from collections.abc import AsyncIterator

import grpc
import structlog

from minmo.rpc import metrics, tracing
from minmo.rpc.errors import StatusError, deadline_exceeded, invalid_argument
from minmo.rpc.metadata import AUTHORIZATION_KEY
from minmo.rpc.queues import BoundedStream, StreamClosedError
from minmo.settings import OrchestratorSettings
from minmo.v1 import conversation_pb2
from minmo.v1.conversation_pb2_grpc import ConversationServiceServicer
from services.orchestrator import checks, protos, speech
from services.orchestrator.conversation import Conversation, Upstreams
from services.orchestrator.reading_aloud import Reader
from services.orchestrator.session_settings import Settings
from services.orchestrator.store import StoredSession

log = structlog.get_logger()

_DEFAULT_PAGE = 50
_MAX_PAGE = 200
_OUT_LIMIT = 512
_Context = grpc.aio.ServicerContext[object, object]


class ConversationServicer(ConversationServiceServicer):
    """The handlers of `ConversationService`."""

    def __init__(self, settings: OrchestratorSettings, upstreams: Upstreams) -> None:
        self._settings = settings
        self._upstreams = upstreams
        self._store = upstreams.store
        self._reader = Reader(
            upstreams.llm,
            settings.system_prompt,
            deadline_seconds=settings.llm_deadline_seconds,
            recovery_seconds=settings.recovery_seconds,
        )

    # --- sessions

    async def CreateSession(  # noqa: N802
        self, request: conversation_pb2.CreateSessionRequest, context: _Context
    ) -> conversation_pb2.CreateSessionResponse:
        """Makes a session."""
        settings = await self._checked(request.settings)
        session = await self._store.create(_owner(context), settings)
        return conversation_pb2.CreateSessionResponse(session=protos.session(session))

    async def GetSession(  # noqa: N802
        self, request: conversation_pb2.GetSessionRequest, context: _Context
    ) -> conversation_pb2.GetSessionResponse:
        """Returns a session with its turns."""
        session = await self._store.get(checks.session_id(request.session_id), _owner(context))
        response = conversation_pb2.GetSessionResponse(session=protos.session(session))
        response.session.turns.extend(protos.turn(turn) for turn in session.turns)
        return response

    async def ListSessions(  # noqa: N802
        self, request: conversation_pb2.ListSessionsRequest, context: _Context
    ) -> conversation_pb2.ListSessionsResponse:
        """Lists the caller's sessions."""
        size = request.page_size or _DEFAULT_PAGE
        if size > _MAX_PAGE:
            raise invalid_argument("page_size", f"is {size}", limit=f"{_MAX_PAGE}")
        try:
            before = float(request.page_token or 0)
        except ValueError:
            raise invalid_argument("page_token", "is not one that ListSessions returned") from None
        sessions = await self._store.page(_owner(context), size, before)
        return conversation_pb2.ListSessionsResponse(
            sessions=[protos.session(session) for session in sessions],
            next_page_token=repr(sessions[-1].created) if len(sessions) == size else "",
        )

    async def DeleteSession(  # noqa: N802
        self, request: conversation_pb2.DeleteSessionRequest, context: _Context
    ) -> conversation_pb2.DeleteSessionResponse:
        """Deletes a session."""
        await self._store.delete(checks.session_id(request.session_id), _owner(context))
        return conversation_pb2.DeleteSessionResponse()

    # --- one shot

    async def Say(  # noqa: N802
        self, request: conversation_pb2.SayRequest, context: _Context
    ) -> conversation_pb2.SayResponse:
        """Speaks a text."""
        return await speech.say(
            self._upstreams.voice_decoder,
            request,
            voices=self._upstreams.voices,
            reader=self._reader,
            max_characters=self._settings.max_say_characters,
            deadline_seconds=self._settings.one_shot_deadline_seconds,
        )

    async def Transcribe(  # noqa: N802
        self, request: conversation_pb2.TranscribeRequest, context: _Context
    ) -> conversation_pb2.TranscribeResponse:
        """Writes down a recording."""
        return await speech.transcribe(
            self._upstreams.encoder,
            request,
            max_seconds=self._settings.max_transcribe_seconds,
            deadline_seconds=self._settings.encoder_deadline_seconds,
        )

    # --- the conversation

    async def Converse(  # noqa: N802
        self,
        request_iterator: AsyncIterator[conversation_pb2.ConverseRequest],
        context: _Context,
    ) -> AsyncIterator[conversation_pb2.ConverseResponse]:
        """Talks."""
        requests = aiter(request_iterator)
        config = await self._config(requests)
        session = await self._session(config, _owner(context))
        stream_id = uuid.uuid4().hex
        await self._store.acquire(session.session_id, stream_id, take_over=config.take_over)
        structlog.contextvars.bind_contextvars(session=session.session_id)
        metrics.SESSIONS_OPENED.labels(_how(config, session)).inc()
        if config.session_id:
            # The stream that had it may have written until now.
            session = await self._store.get(session.session_id, session.owner)
        out: BoundedStream[conversation_pb2.ConverseResponse] = BoundedStream(
            _OUT_LIMIT, put_timeout_seconds=self._settings.read_deadline_seconds
        )
        conversation = Conversation(
            self._settings,
            self._upstreams,
            session,
            stream_id=stream_id,
            config=config,
            out=out,
            traceparent=tracing.traceparent_of(context.invocation_metadata()),
        )
        task = asyncio.create_task(self._converse(conversation, requests, out))
        try:
            sequence = 0
            async for response in out:
                response.sequence = sequence
                sequence += 1
                yield response
            await task
        finally:
            out.close()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            with contextlib.suppress(StatusError):
                await self._store.release(session.session_id, stream_id)

    async def _converse(
        self,
        conversation: Conversation,
        requests: AsyncIterator[conversation_pb2.ConverseRequest],
        out: BoundedStream[conversation_pb2.ConverseResponse],
    ) -> None:
        try:
            with conversation.census:
                await conversation.run(requests)
            out.close()
        except StreamClosedError:
            log.info("the client is gone")
        except Exception as failure:
            out.fail(failure)

    async def _config(
        self, requests: AsyncIterator[conversation_pb2.ConverseRequest]
    ) -> conversation_pb2.ConverseConfig:
        seconds = self._settings.config_deadline_seconds
        try:
            async with asyncio.timeout(seconds):
                request = await anext(requests, None)
        except TimeoutError:
            raise deadline_exceeded(
                f"no config came within {seconds:g} s: send it as the first message",
                limit=f"{seconds:g} s",
                reason="CONFIG_MISSING",
            ) from None
        if request is None:
            raise invalid_argument("config", "the stream ended without it", reason="STREAM_EMPTY")
        if not request.HasField("config"):
            raise invalid_argument(
                "config", f"must be the first message, not {request.WhichOneof('message')}"
            )
        config = request.config
        checks.audio_format(config.input_format, "config.input_format", channels=2, opus=True)
        checks.audio_format(config.output_format, "config.output_format", channels=1, opus=True)
        return config

    async def _checked(self, given: conversation_pb2.SessionSettings) -> Settings:
        """The settings of a session that is to be made."""
        # Schemas may take a while, and others talk meanwhile.
        settings = await asyncio.to_thread(checks.session_settings, given)
        await self._upstreams.voices.check(settings.voice, "settings.voice")
        return settings

    async def _session(self, config: conversation_pb2.ConverseConfig, owner: str) -> StoredSession:
        if not config.session_id:
            settings = await self._checked(config.settings)
            return await self._store.create(owner, settings)
        if config.HasField("settings"):
            raise invalid_argument(
                "config.settings", "belongs to a session that is made here; leave session_id empty"
            )
        return await self._store.get(checks.session_id(config.session_id), owner)


def _how(config: conversation_pb2.ConverseConfig, session: StoredSession) -> metrics.SessionStart:
    if not config.session_id:
        return "new"
    return "taken_over" if config.take_over and session.streaming else "resumed"


def _owner(context: _Context) -> str:
    """Names the caller without keeping the token."""
    for key, value in context.invocation_metadata() or ():
        if key == AUTHORIZATION_KEY:
            token = value if isinstance(value, bytes) else value.encode()
            return hashlib.sha256(token).hexdigest()[:24]
    return "anonymous"
