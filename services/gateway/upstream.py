"""The orchestrator's stream behind a connection."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeAlias

import grpc

from minmo.rpc.errors import (
    StatusError,
    deadline_exceeded,
    error,
    parse,
    status_of,
    unavailable,
)
from minmo.rpc.metadata import AUTHORIZATION_KEY, bearer
from minmo.v1 import conversation_pb2
from minmo.v1.conversation_pb2 import ConverseRequest, ConverseResponse
from minmo.v1.conversation_pb2_grpc import ConversationServiceStub

if TYPE_CHECKING:
    from minmo.v1.conversation_pb2_grpc import ConversationServiceAsyncStub

_Call: TypeAlias = "grpc.aio.StreamStreamCall[ConverseRequest, ConverseResponse]"

WRITE_SECONDS = 10.0
"""Longest wait for the orchestrator to take a message."""


class Upstream:
    """One stream of `Converse`, and the unary calls of the same caller.

    Args:
        channel: to the orchestrator.
        token: what the caller shows; empty shows nothing.
        open_seconds: longest wait for the stream's beginning.
    """

    def __init__(self, channel: grpc.aio.Channel, token: str, open_seconds: float) -> None:
        self._stub: ConversationServiceAsyncStub = ConversationServiceStub(channel)
        self._metadata = ((AUTHORIZATION_KEY, bearer(token)),) if token else ()
        self._open_seconds = open_seconds
        self._call: _Call | None = None
        self._sequence = 0

    @property
    def is_open(self) -> bool:
        """Whether there is a stream."""
        return self._call is not None

    async def open(self, config: conversation_pb2.ConverseConfig) -> ConverseResponse:
        """Opens a stream; returns its first message, `ready`. Raises StatusError."""
        call: _Call = self._stub.Converse(metadata=self._metadata)
        try:
            async with asyncio.timeout(self._open_seconds):
                await call.write(ConverseRequest(config=config))
                response = await call.read()
        except grpc.RpcError as failure:
            raise parse(failure) from None
        except asyncio.InvalidStateError:
            raise await _status_of(call) from None
        except TimeoutError:
            call.cancel()
            raise deadline_exceeded(
                f"the orchestrator opened no session within {self._open_seconds:g} s",
                limit=f"{self._open_seconds:g} s",
            ) from None
        except BaseException:
            call.cancel()
            raise
        if not (isinstance(response, ConverseResponse) and response.HasField("ready")):
            call.cancel()
            raise await _status_of(call)
        self._call, self._sequence = call, 0
        return response

    async def read(self) -> ConverseResponse | None:
        """The next message; None at the stream's end. Raises StatusError: it was lost or ended."""
        call = self._call
        if call is None:
            raise unavailable("there is no stream")
        try:
            response = await call.read()
        except grpc.RpcError as failure:
            raise parse(failure) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise unavailable("the orchestrator took nothing for too long") from None
        if not isinstance(response, ConverseResponse):
            status = await _status_of(call)
            if status.code is grpc.StatusCode.OK:
                return None
            raise status
        return response

    async def write(self, request: ConverseRequest) -> bool:
        """Sends a message; False if the stream did not take it: the reader learns why."""
        call = self._call
        if call is None:
            return False
        if request.HasField("audio"):
            request.audio.sequence = self._sequence
            self._sequence += 1
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                await call.write(request)
        except (grpc.RpcError, asyncio.InvalidStateError):
            return False
        except TimeoutError:
            call.cancel()
            return False
        return True

    def close(self) -> None:
        """Ends the stream."""
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    async def session(self, session_id: str) -> conversation_pb2.Session:
        """A session with its turns. Raises StatusError."""
        request = conversation_pb2.GetSessionRequest(session_id=session_id)
        try:
            response = await self._stub.GetSession(
                request, timeout=self._open_seconds, metadata=self._metadata
            )
        except grpc.RpcError as failure:
            raise parse(failure) from None
        return response.session

    async def transcribe(self, request: conversation_pb2.TranscribeRequest, seconds: float) -> str:
        """The words of a recording. Raises StatusError."""
        try:
            response = await self._stub.Transcribe(
                request, timeout=seconds, metadata=self._metadata
            )
        except grpc.RpcError as failure:
            raise parse(failure) from None
        return response.text


async def _status_of(call: _Call) -> StatusError:
    """How a call ended, whose stream gave no message."""
    status = await status_of(call)
    if status.code is grpc.StatusCode.OK:
        return error(status.code, "ENDED", "the orchestrator ended the stream")
    return status
