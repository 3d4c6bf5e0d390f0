"""One stream of `Converse`, as its clients hold it: `minmo.client` and the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self, TypeAlias

import grpc
import structlog

from minmo.rpc.errors import (
    StatusError,
    deadline_exceeded,
    error,
    parse,
    status_of,
    unavailable,
)
from minmo.rpc.moving import Backlog
from minmo.v1 import conversation_pb2
from minmo.v1.conversation_pb2 import ConverseRequest, ConverseResponse

if TYPE_CHECKING:
    from minmo.v1.conversation_pb2_grpc import ConversationServiceAsyncStub

_Call: TypeAlias = "grpc.aio.StreamStreamCall[ConverseRequest, ConverseResponse]"

WRITE_SECONDS = 10.0
"""Longest wait for the server to take a message."""
MOVE_SECONDS = 4.0
"""Longest search for another server when one stops; writing waits meanwhile."""
_AGAIN_SECONDS = 0.1

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class ConverseStream:
    """A stream that has its session: one task reads it, any may write. Use `open`.

    When the server stops, and ends the stream between turns, it goes on with another server, where
    there is one: nobody who reads or writes notices, apart from the time that it takes
    (`minmo.rpc.moving`).
    """

    def __init__(self, opening: _Opening, call: _Call, ready: ConverseResponse) -> None:
        """Use `open`."""
        self.ready = ready
        """The stream's first message."""
        self._opening = opening
        self._call = call
        self._writing = asyncio.Lock()
        self._fate: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._backlog = Backlog()
        self._audio_sequence = 0
        self._offset_ms = 0
        self._response_sequence = ready.sequence + 1
        self._finished = self._closed = False

    @classmethod
    async def open(
        cls,
        stub: ConversationServiceAsyncStub,
        config: conversation_pb2.ConverseConfig,
        *,
        seconds: float,
        server: str,
        metadata: tuple[tuple[str, str], ...] = (),
    ) -> Self:
        """Opens a stream and waits for its session.

        Args:
            stub: of the server.
            config: of the stream.
            seconds: longest wait.
            server: whom errors name.
            metadata: to show.

        Raises:
            StatusError: the server refuses, is not there, or has not answered in time.
        """
        opening = _Opening(stub, config, seconds, server, metadata)
        return cls(opening, *await opening.call())

    async def read(self) -> ConverseResponse | None:
        """The next message; None at the end.

        Raises:
            StatusError: the stream was lost, ended by the server, or closed here; or (DATA_LOSS) a
                message is missing.
        """
        try:
            response = await self._read()
            while response is not None and response.HasField("moving"):
                await self._move(response.moving)
                response = await self._read()
        except BaseException:
            self._decide(moved=False)
            raise
        if response is None:
            self._decide(moved=False)
        elif response.HasField("event"):
            response.event.audio_ms += self._offset_ms
        return response

    async def write(self, request: ConverseRequest) -> bool:
        """Sends a message; False if the stream did not take it: who reads it learns why.

        Numbers audio. Cancelling it ends the stream.
        """
        async with self._writing:
            fate = self._fate
            if await self._write(request):
                return True
        # Who reads learns whether the stream has moved; what was written then went along.
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                return await asyncio.shield(fate)
        except TimeoutError:
            return False

    async def finish(self) -> None:
        """Says that nothing more will be written."""
        async with self._writing:
            self._finished = True
            with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
                await self._call.done_writing()

    def close(self) -> None:
        """Ends the stream."""
        self._closed = True
        self._call.cancel()

    async def _read(self) -> ConverseResponse | None:
        try:
            response = await self._call.read()
        except grpc.RpcError as failure:
            raise parse(failure) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise unavailable(
                f"the stream was closed here, or {self._opening.server} took nothing for "
                f"{WRITE_SECONDS:g} s"
            ) from None
        if not isinstance(response, ConverseResponse):
            return None
        if response.sequence != self._response_sequence:
            raise error(
                grpc.StatusCode.DATA_LOSS,
                "SEQUENCE_GAP",
                f"message {self._response_sequence} of the stream is missing, "
                f"{response.sequence} came",
            )
        self._response_sequence += 1
        return response

    async def _write(self, request: ConverseRequest) -> bool:
        if request.HasField("audio"):
            request.audio.sequence = self._audio_sequence
            self._audio_sequence += 1
        self._backlog.sent(request)
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                await self._call.write(request)
        except (grpc.RpcError, asyncio.InvalidStateError):
            return False
        except TimeoutError:
            self._call.cancel()
            return False
        return True

    async def _move(self, moving: conversation_pb2.Moving) -> None:
        """Opens the session at another server. Raises StatusError: there is none."""
        self._call.cancel()
        async with self._writing:
            self._call, ready = await self._open_elsewhere()
            rest, self._backlog = self._backlog.rest(moving), Backlog()
            self._audio_sequence, self._response_sequence = 0, ready.sequence + 1
            self._offset_ms += moving.audio_from_ms
            for request in rest:
                # One that fails is noticed by the next read.
                await self._write(request)
            if self._finished:
                with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
                    await self._call.done_writing()
            self._decide(moved=True)
        log.info("the server stopped, another one goes on", sent_again=len(rest))

    async def _open_elsewhere(self) -> tuple[_Call, ConverseResponse]:
        opening = self._opening.again(self.ready.ready.session_id)
        give_up = time.monotonic() + MOVE_SECONDS
        while True:
            try:
                return await opening.call()
            except StatusError as failure:
                lost = failure.code is not grpc.StatusCode.UNAVAILABLE
                if lost or self._closed or time.monotonic() > give_up:
                    raise
            await asyncio.sleep(_AGAIN_SECONDS)

    def _decide(self, *, moved: bool) -> None:
        """Tells those who could not write what became of the stream."""
        if not self._fate.done():
            self._fate.set_result(moved)
        if moved:
            self._fate = asyncio.get_running_loop().create_future()


@dataclass(frozen=True)
class _Opening:
    """How a stream is opened."""

    stub: ConversationServiceAsyncStub
    config: conversation_pb2.ConverseConfig
    seconds: float
    server: str
    metadata: tuple[tuple[str, str], ...]

    def again(self, session_id: str) -> _Opening:
        """How the session is opened that the stream has got."""
        config = conversation_pb2.ConverseConfig()
        config.CopyFrom(self.config)
        config.ClearField("settings")
        config.session_id, config.take_over = session_id, True
        return replace(self, config=config)

    async def call(self) -> tuple[_Call, ConverseResponse]:
        """A call, and its first message, `ready`. Raises StatusError."""
        call: _Call = self.stub.Converse(metadata=self.metadata)
        try:
            async with asyncio.timeout(self.seconds):
                await call.write(ConverseRequest(config=self.config))
                response = await call.read()
        except grpc.RpcError as failure:
            raise parse(failure) from None
        except asyncio.InvalidStateError:
            raise await _early_end(call, self.server) from None
        except TimeoutError:
            call.cancel()
            raise deadline_exceeded(
                f"{self.server} gave no session within {self.seconds:g} s",
                limit=f"{self.seconds:g} s",
            ) from None
        except BaseException:
            call.cancel()
            raise
        if not isinstance(response, ConverseResponse):
            raise await _early_end(call, self.server)
        if not response.HasField("ready"):
            call.cancel()
            raise error(
                grpc.StatusCode.INTERNAL,
                "PROTOCOL",
                f"the first message of {self.server} was no `ready`",
            )
        return call, response


async def _early_end(call: _Call, server: str) -> StatusError:
    """How a call ended that gave no message."""
    status = await status_of(call)
    if status.code is grpc.StatusCode.OK:
        return unavailable(f"{server} ended the stream at once", reason="NO_SESSION")
    return status
