"""The orchestrator's stream behind a connection."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc

from minmo.rpc import metrics, tracing
from minmo.rpc.converse import ConverseStream
from minmo.rpc.errors import StatusError, parse, unavailable
from minmo.rpc.metadata import AUTHORIZATION_KEY, bearer
from minmo.v1 import conversation_pb2
from minmo.v1.conversation_pb2 import ConverseRequest, ConverseResponse
from minmo.v1.conversation_pb2_grpc import ConversationServiceStub

if TYPE_CHECKING:
    from minmo.v1.conversation_pb2_grpc import ConversationServiceAsyncStub


class Upstream:
    """One stream of `Converse`, and the unary calls of the same caller.

    Args:
        channel: to the orchestrator.
        token: what the caller shows; empty shows nothing.
        open_seconds: longest wait for the stream's beginning.
        traceparent: of what the caller does with the stream, which its turns' traces are linked to.
    """

    def __init__(
        self, channel: grpc.aio.Channel, token: str, open_seconds: float, traceparent: str = ""
    ) -> None:
        self._stub: ConversationServiceAsyncStub = ConversationServiceStub(channel)
        shown = (
            (AUTHORIZATION_KEY, bearer(token) if token else ""),
            (tracing.TRACEPARENT_KEY, tracing.checked(traceparent)),
        )
        self._metadata = tuple((key, value) for key, value in shown if value)
        self._open_seconds = open_seconds
        self._stream: ConverseStream | None = None
        self._opened = asyncio.Event()

    @property
    def is_open(self) -> bool:
        """Whether there is a stream."""
        return self._stream is not None

    async def wait_open(self) -> None:
        """Returns when there is a stream."""
        await self._opened.wait()

    async def open(self, config: conversation_pb2.ConverseConfig) -> ConverseResponse:
        """Opens a stream; returns its first message, `ready`. Raises StatusError."""
        self._stream = await ConverseStream.open(
            self._stub,
            config,
            seconds=self._open_seconds,
            server="the orchestrator",
            metadata=self._metadata,
        )
        self._opened.set()
        return self._stream.ready

    async def read(self) -> ConverseResponse | None:
        """The next message; None at the stream's end. Raises StatusError: it was lost or ended."""
        if self._stream is None:
            raise unavailable("there is no stream")
        return await self._stream.read()

    async def write(self, request: ConverseRequest) -> bool:
        """Sends a message; False if the stream did not take it: the reader learns why."""
        return self._stream is not None and await self._stream.write(request)

    def close(self) -> None:
        """Ends the stream."""
        stream, self._stream = self._stream, None
        self._opened.clear()
        if stream is not None:
            stream.close()

    async def session(self, session_id: str) -> conversation_pb2.Session:
        """A session with its turns. Raises StatusError."""
        request = conversation_pb2.GetSessionRequest(session_id=session_id)
        try:
            with metrics.timed(metrics.HOP_ORCHESTRATOR.labels("get_session")):
                response = await self._stub.GetSession(
                    request, timeout=self._open_seconds, metadata=self._metadata
                )
        except grpc.RpcError as failure:
            raise _failed(failure) from None
        return response.session

    async def transcribe(self, request: conversation_pb2.TranscribeRequest, seconds: float) -> str:
        """The words of a recording. Raises StatusError."""
        try:
            with metrics.timed(metrics.HOP_ORCHESTRATOR.labels("transcribe")):
                response = await self._stub.Transcribe(
                    request, timeout=seconds, metadata=self._metadata
                )
        except grpc.RpcError as failure:
            raise _failed(failure) from None
        return response.text


def _failed(failure: grpc.RpcError) -> StatusError:
    status = parse(failure)
    metrics.count_hop_error("orchestrator", status.code)
    return status
