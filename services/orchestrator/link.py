"""One stream of operations to the LLM service, and their answers."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import grpc

from minmo.rpc import metrics
from minmo.rpc.errors import StatusError, error, parse
from minmo.rpc.metadata import call_metadata
from minmo.v1 import llm_pb2
from minmo.v1.llm_pb2_grpc import LlmServiceStub

if TYPE_CHECKING:
    from minmo.v1.llm_pb2_grpc import LlmServiceAsyncStub

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


class Link:
    """One stream of operations to the LLM service; the next operation opens a lost one again.

    Args:
        channel: to the LLM service.
        session_id: names the session's cache.
        deadline_seconds: longest wait for the next answer of an operation.
    """

    def __init__(
        self, channel: grpc.aio.Channel, session_id: str, *, deadline_seconds: float
    ) -> None:
        self._stub: LlmServiceAsyncStub = LlmServiceStub(channel)
        self._session_id = session_id
        self._deadline = deadline_seconds
        self._ids = itertools.count(1)
        self._prefix = f"{time.time_ns():x}"
        self._pending: dict[str, _Answers] = {}
        self._requests: asyncio.Queue[llm_pb2.RunRequest] | None = None
        self._reader: asyncio.Task[None] | None = None
        self.replica_id = ""

    def new_operation_id(self) -> str:
        """An id that no operation of this session has had."""
        return f"{self._prefix}-{next(self._ids)}"

    async def model(self) -> llm_pb2.GetModelResponse:
        """Which model runs. UNAVAILABLE if none does within the deadline."""
        give_up = time.monotonic() + self._deadline
        while True:
            try:
                return await self._stub.GetModel(
                    llm_pb2.GetModelRequest(),
                    timeout=self._deadline,
                    wait_for_ready=True,
                    metadata=call_metadata(self._session_id),
                )
            except grpc.RpcError as failure:
                status = parse(failure)
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
    async def answers_of(self, request: llm_pb2.RunRequest) -> AsyncIterator[_Answers]:
        """Sends an operation and gathers its answers."""
        answers: _Answers = asyncio.Queue()
        self._pending[request.operation_id] = answers
        try:
            await self._send(request)
            yield answers
        finally:
            self._pending.pop(request.operation_id, None)

    async def send_cancel(self, request: llm_pb2.RunRequest) -> None:
        """Asks to stop an operation; its own last answer says when it has."""
        await self._send(
            llm_pb2.RunRequest(
                operation_id=self.new_operation_id(),
                session_id=self._session_id,
                branch=request.branch,
                epoch=request.epoch,
                cancel=llm_pb2.Cancel(operation_id=request.operation_id),
            )
        )

    async def close(self) -> None:
        """Ends the stream, which cancels what runs."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
            self._reader = None

    async def _send(self, request: llm_pb2.RunRequest) -> None:
        if self._reader is None or self._reader.done() or self._requests is None:
            self._requests = asyncio.Queue(maxsize=256)
            self._reader = asyncio.create_task(self._read(self._requests))
        try:
            await asyncio.wait_for(self._requests.put(request), self._deadline)
        except TimeoutError:
            raise LlmError("LINK", "the LLM service takes no operations", 14) from None

    async def _read(self, requests: asyncio.Queue[llm_pb2.RunRequest]) -> None:
        async def outgoing() -> AsyncIterator[llm_pb2.RunRequest]:
            while True:
                yield await requests.get()

        call = self._stub.Run(outgoing(), metadata=call_metadata(self._session_id))
        failure = LlmError("LINK", "the LLM service ended the stream", 14)
        try:
            async for response in call:
                self.replica_id = response.replica_id or self.replica_id
                answers = self._pending.get(response.operation_id)
                if answers is None:
                    continue
                if response.WhichOneof("event") == "error":
                    refused = response.error
                    answers.put_nowait(LlmError(refused.reason, refused.message, refused.code))
                else:
                    answers.put_nowait(response)
        except grpc.RpcError as lost:
            status = parse(lost)
            metrics.UPSTREAM_ERRORS.labels("llm", status.code.name).inc()
            failure = LlmError("LINK", str(status), status.code.value[0])
        finally:
            call.cancel()
            for answers in self._pending.values():
                answers.put_nowait(failure)


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

    async def __aenter__(self) -> Operation:
        self._answers = await self._exit.enter_async_context(self._link.answers_of(self._request))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._exit.aclose()

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
            raise answer
        return answer

    async def stop(self) -> llm_pb2.RunResponse:
        """Stops a generation; returns its last answer."""
        await self._link.send_cancel(self._request)
        while True:
            answer = await self.answer()
            if not answer.HasField("token"):
                return answer
