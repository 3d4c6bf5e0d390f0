"""One stream of operations to the LLM service, and their answers."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc
import structlog

from minmo.rpc import metrics, tracing
from minmo.rpc.errors import DRAINING, StatusError, error, parse
from minmo.rpc.metadata import call_metadata
from minmo.v1 import llm_pb2
from minmo.v1.llm_pb2_grpc import LlmServiceStub

if TYPE_CHECKING:
    from minmo.v1.llm_pb2_grpc import LlmServiceAsyncStub

log = structlog.get_logger()

MOVED = "MOVED"
"""Reason of operations that ran on a replica that stops: another one can carry them out at once."""

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class LlmError(Exception):
    """The LLM refused or lost an operation; `reason` is the contract's word for why."""

    def __init__(self, reason: str, message: str, code: int) -> None:
        super().__init__(message)
        self.reason = reason
        self.code = _CODES.get(code, grpc.StatusCode.UNKNOWN)

    def to_status(self) -> StatusError:
        """The same for the caller of the conversation."""
        return error(self.code, self.reason, f"the LLM: {self}")


_Answers = asyncio.Queue[llm_pb2.RunResponse | LlmError]
"""Bounded by what an operation may answer: its tokens and one last word."""


@dataclass(eq=False)
class _Stream:
    """One call of `Run`.

    Attributes:
        replica_id: the replica that answered last, on this stream or the one before.
        requests: to be sent.
        pending: where answers go, by the operation's id.
        reader: sends and reads; done once the call has ended.
    """

    replica_id: str
    requests: asyncio.Queue[llm_pb2.RunRequest] = field(
        default_factory=lambda: asyncio.Queue(maxsize=256)
    )
    pending: dict[str, _Answers] = field(default_factory=dict)
    reader: asyncio.Task[None] | None = None


class Link:
    """A stream of operations to the LLM service; the next operation opens a lost one again.

    Args:
        channel: to the LLM service.
        session_id: names the session's cache, and which replica has it.
        deadline_seconds: longest wait for the next answer of an operation.
        on_moved: told when the replica has ended the stream because it stops: the cache, which it
            had, is to be built elsewhere.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        session_id: str,
        *,
        deadline_seconds: float,
        on_moved: Callable[[], None] = lambda: None,
    ) -> None:
        self._stub: LlmServiceAsyncStub = LlmServiceStub(channel)
        self._session_id = session_id
        self._deadline = deadline_seconds
        self._on_moved = on_moved
        self._ids = itertools.count(1)
        self._prefix = f"{time.time_ns():x}"
        self._stream: _Stream | None = None
        self._ending: set[_Stream] = set()
        self._closed = False
        self.moves = 0
        """How often a replica has sent the session away."""

    @property
    def replica_id(self) -> str:
        """The replica that answered last; empty before one has."""
        return "" if self._stream is None else self._stream.replica_id

    def new_operation_id(self) -> str:
        """An id that no operation of this session has had."""
        return f"{self._prefix}-{next(self._ids)}"

    async def model(self) -> llm_pb2.GetModelResponse:
        """Which model runs. UNAVAILABLE if none does within the deadline."""
        give_up = time.monotonic() + self._deadline
        while True:
            try:
                with metrics.timed(metrics.HOP_LLM.labels("get_model")):
                    return await self._stub.GetModel(
                        llm_pb2.GetModelRequest(),
                        timeout=self._deadline,
                        wait_for_ready=True,
                        metadata=call_metadata(self._session_id),
                    )
            except grpc.RpcError as failure:
                status = parse(failure)
                metrics.count_hop_error("llm", status.code)
                retried = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
                if status.code not in retried or time.monotonic() > give_up:
                    raise status from None
            await asyncio.sleep(0.2)

    async def operate(self, request: llm_pb2.RunRequest) -> llm_pb2.RunResponse:
        """Carries out an operation that has one answer. Raises `LlmError`."""
        async with self.start(request) as operation:
            return await operation.answer()

    def start(self, request: llm_pb2.RunRequest) -> Operation:
        """An operation whose answers are read one by one."""
        request.session_id = self._session_id
        return Operation(self, request, self._deadline)

    @asynccontextmanager
    async def answers_of(
        self, request: llm_pb2.RunRequest
    ) -> AsyncIterator[tuple[_Answers, _Stream]]:
        """Sends an operation; its answers, and the stream on which it runs."""
        stream = self._open_stream()
        answers: _Answers = asyncio.Queue()
        stream.pending[request.operation_id] = answers
        try:
            await self._send(stream, request)
            yield answers, stream
        finally:
            stream.pending.pop(request.operation_id, None)

    async def send_cancel(self, request: llm_pb2.RunRequest, stream: _Stream) -> None:
        """Asks to stop an operation; its own last answer says when it has."""
        await self._send(
            stream,
            llm_pb2.RunRequest(
                operation_id=self.new_operation_id(),
                session_id=self._session_id,
                branch=request.branch,
                epoch=request.epoch,
                cancel=llm_pb2.Cancel(operation_id=request.operation_id),
            ),
        )

    def leave(self) -> None:
        """Ends the stream: what runs on it fails, and the next operation may find another replica.

        For a replica that answers but has lost what is behind it.
        """
        stream, self._stream = self._stream, None
        if stream is not None and stream.reader is not None:
            self._ending.add(stream)
            stream.reader.add_done_callback(lambda _: self._ending.discard(stream))
            stream.reader.cancel()

    async def close(self) -> None:
        """Ends the stream, which cancels what runs; no other is opened."""
        self._closed = True
        self.leave()
        readers = [stream.reader for stream in self._ending if stream.reader is not None]
        await asyncio.gather(*readers, return_exceptions=True)

    def _open_stream(self) -> _Stream:
        if self._closed:
            # Work that goes on after its conversation would keep a stream for ever.
            raise LlmError("CLOSED", "the conversation has ended", 1)
        stream = self._stream
        if stream is None or stream.reader is None or stream.reader.done():
            stream = self._stream = _Stream(replica_id=self.replica_id)
            stream.reader = asyncio.create_task(self._read(stream))
        return stream

    async def _send(self, stream: _Stream, request: llm_pb2.RunRequest) -> None:
        try:
            await asyncio.wait_for(stream.requests.put(request), self._deadline)
        except TimeoutError:
            raise LlmError("LINK", "the LLM service takes no operations", 14) from None

    async def _read(self, stream: _Stream) -> None:
        async def outgoing() -> AsyncIterator[llm_pb2.RunRequest]:
            while True:
                yield await stream.requests.get()

        call = self._stub.Run(outgoing(), metadata=call_metadata(self._session_id))
        failure = LlmError("LINK", "the LLM service ended the stream", 14)
        try:
            async for response in call:
                stream.replica_id = response.replica_id or stream.replica_id
                answers = stream.pending.get(response.operation_id)
                if answers is None:
                    continue
                if response.WhichOneof("event") == "error":
                    refused = response.error
                    failed = LlmError(refused.reason, refused.message, refused.code)
                    metrics.count_hop_error("llm", failed.code)
                    answers.put_nowait(failed)
                else:
                    answers.put_nowait(response)
        except grpc.RpcError as lost:
            status = parse(lost)
            reason = "LINK"
            if status.reason == DRAINING:
                log.info("the LLM's replica stops, the session moves")
                reason = MOVED
                self.moves += 1
            else:
                metrics.count_hop_error("llm", status.code)
            failure = LlmError(reason, str(status), status.code.value[0])
        finally:
            call.cancel()
            for answers in stream.pending.values():
                answers.put_nowait(failure)
        if failure.reason == MOVED:
            self._on_moved()


class Operation:
    """An operation that runs. Use it with ``async with``: it is sent on entering.

    Unlike a generator it can still be asked to stop, and say how far it got, after a wait for its
    next answer was cancelled.
    """

    def __init__(self, link: Link, request: llm_pb2.RunRequest, deadline_seconds: float) -> None:
        self._link = link
        self._request = request
        self._deadline = deadline_seconds
        self._exit = AsyncExitStack()
        self._answers: _Answers | None = None
        self._stream: _Stream | None = None
        self._began: float | None = None
        self._span = tracing.NONE

    async def __aenter__(self) -> Operation:
        if self._answers is None:
            self._began = time.monotonic()
            await self.send()
        return self

    async def send(self) -> None:
        """Sends it before its context is entered: its answers wait until somebody reads them."""
        kind = self._request.WhichOneof("operation")
        if kind != "probe":  # there are seven a second
            self._span = tracing.begin(f"llm.{kind}", kind="client")
        self._request.traceparent = self._span.traceparent
        self._answers, self._stream = await self._exit.enter_async_context(
            self._link.answers_of(self._request)
        )

    async def __aexit__(self, *_: object) -> None:
        self._span.end()
        await self._exit.aclose()

    @property
    def unread(self) -> int:
        """Answers that have come and that nobody has taken."""
        return 0 if self._answers is None else self._answers.qsize()

    async def answer(self) -> llm_pb2.RunResponse:
        """The next answer. Raises `LlmError`, also when none comes within the deadline."""
        assert self._answers is not None, "an operation is used within its context"
        try:
            answer = await asyncio.wait_for(self._answers.get(), self._deadline)
        except TimeoutError:
            raise LlmError(
                "LINK", f"the LLM has not answered for {self._deadline:g} s", 4
            ) from None
        if isinstance(answer, LlmError):
            self._span.end(failure=answer.reason)
            raise answer
        if self._began is not None:
            self._span.event("first_answer")
            kind = str(self._request.WhichOneof("operation"))
            metrics.HOP_LLM.labels(kind).observe(time.monotonic() - self._began)
            self._began = None
        return answer

    async def stop(self) -> llm_pb2.RunResponse:
        """Stops a generation; returns its last answer."""
        assert self._stream is not None, "an operation is stopped within its context"
        await self._link.send_cancel(self._request, self._stream)
        while True:
            answer = await self.answer()
            if not answer.HasField("token"):
                return answer
