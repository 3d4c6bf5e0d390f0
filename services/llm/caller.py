"""One caller's stream: its operations on their way to Triton, and what comes back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from dataclasses import dataclass, field
from typing import Any

import grpc
import structlog

from minmo.engine.prompt import ChatFormat, TextStream
from minmo.rpc import metrics
from minmo.rpc.queues import BoundedStream
from minmo.v1 import llm_pb2
from services.llm.prompt import PromptReader
from services.llm.triton import StreamEndedError, TritonModel, TritonStream, describe_loss

log = structlog.get_logger(__name__)

# About ten seconds of eight generations; who reads nothing for so long is given up.
_MAX_WAITING_RESPONSES = 1024
_WATCH_SECONDS = 1.0


@dataclass(eq=False)
class _Running:
    """An operation that Triton has not finished."""

    request: llm_pb2.RunRequest
    text: TextStream


@dataclass(eq=False)
class _Link:
    """A stream to Triton, and what runs on it.

    Attributes:
        stream: as opened.
        running: operations, by their numbers there.
        heard: seconds of the event loop, when Triton last said something.
        silent: whether it was ended because it said nothing.
    """

    stream: TritonStream
    running: dict[int, _Running] = field(default_factory=dict)
    heard: float = 0.0
    silent: bool = False


class CallerStream:
    """Carries the operations of one `Run` call.

    It has a stream to Triton of its own, so that ending it cancels exactly what this caller runs.
    When Triton goes away, what runs is answered with an error, and the next operation opens a new
    stream.

    Args:
        triton: the model.
        reader: checks and tokenises.
        max_operations: that may run at the same time.
        deadline_seconds: longest wait for Triton to say anything while operations run.
    """

    def __init__(
        self,
        triton: TritonModel,
        reader: PromptReader,
        max_operations: int,
        deadline_seconds: float,
    ) -> None:
        self._triton = triton
        self._reader = reader
        self._chat: ChatFormat = reader.chat
        self._max_operations = max_operations
        self._deadline_seconds = deadline_seconds
        self._responses: BoundedStream[llm_pb2.RunResponse] = BoundedStream(_MAX_WAITING_RESPONSES)
        self._next_number = 1
        self._link: _Link | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def run(
        self, requests: AsyncIterator[llm_pb2.RunRequest]
    ) -> AsyncGenerator[llm_pb2.RunResponse, None]:
        """Yields responses until the requests and what they asked for have ended.

        Raises:
            StatusError: RESOURCE_EXHAUSTED, the caller does not read.
        """
        self._spawn(self._take(requests))
        self._spawn(self._watch())
        try:
            async for response in self._responses:
                yield response
        finally:
            if self._link is not None:
                self._link.stream.cancel()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _take(self, requests: AsyncIterator[llm_pb2.RunRequest]) -> None:
        try:
            async for request in requests:
                await self._start(request)
            await self._idle.wait()
            self._responses.close()
        except Exception as error:
            self._responses.fail(error)

    async def _start(self, request: llm_pb2.RunRequest) -> None:
        try:
            prepared = self._reader.read(request)
        except ValueError as error:
            await self._refuse(request, grpc.StatusCode.INVALID_ARGUMENT, "BAD_CONTENT", str(error))
            return
        if self._running >= self._max_operations:
            message = f"{self._running} operations of this stream run, the limit; wait for one"
            await self._refuse(request, grpc.StatusCode.RESOURCE_EXHAUSTED, "BUSY", message)
            return
        link = self._link
        if link is None:
            link = self._link = _Link(self._triton.open())
            self._spawn(self._receive(link))
        if not link.running:
            link.heard = asyncio.get_running_loop().time()
        number, self._next_number = self._next_number, self._next_number + 1
        link.running[number] = _Running(request, TextStream(self._chat))
        self._running += 1
        self._idle.clear()
        # Where this fails, the receiving side sees the stream end, and answers for all that ran.
        with contextlib.suppress(grpc.aio.AioRpcError, StreamEndedError):
            await link.stream.send(number, prepared)

    async def _receive(self, link: _Link) -> None:
        code, message = grpc.StatusCode.UNAVAILABLE, "Triton ended the stream; try again"
        try:
            async for number, data in link.stream:
                link.heard = asyncio.get_running_loop().time()
                await self._forward(link, number, data)
        except grpc.aio.AioRpcError as error:
            message = describe_loss(error)
        except asyncio.CancelledError:
            if not link.silent:
                raise
            code = grpc.StatusCode.DEADLINE_EXCEEDED
            message = f"Triton said nothing for {self._deadline_seconds:g} s; try again"
        except Exception as error:
            self._responses.fail(error)
            return
        await self._lose(link, code, message)

    async def _forward(self, link: _Link, number: int, data: bytes | str) -> None:
        running = link.running.get(number)
        if running is None:
            return
        if isinstance(data, str):
            log.error("Triton refused an operation", reason=data)
            await self._fail(running, grpc.StatusCode.UNAVAILABLE, "Triton cannot run the model")
            self._end(link, number)
            return
        response = llm_pb2.RunResponse.FromString(data)
        if response.HasField("token"):
            response.token.text = running.text.add(response.token.id)
            await self._responses.put(response)
        else:
            await self._responses.put(response)
            self._end(link, number)

    def _end(self, link: _Link, number: int) -> None:
        del link.running[number]
        self._running -= 1
        if self._running == 0:
            self._idle.set()

    async def _lose(self, link: _Link, code: grpc.StatusCode, message: str) -> None:
        """Answers for what ran on a stream to Triton that has ended."""
        if self._link is link:
            self._link = None
        if link.running:
            log.warning("operations lost", count=len(link.running), reason=message)
        try:
            for number, running in list(link.running.items()):
                await self._fail(running, code, message)
                self._end(link, number)
        except Exception as error:
            self._responses.fail(error)

    async def _watch(self) -> None:
        """Ends a stream on which Triton says nothing although operations run."""
        while True:
            await asyncio.sleep(min(_WATCH_SECONDS, self._deadline_seconds))
            link = self._link
            if link is None or not link.running:
                continue
            if asyncio.get_running_loop().time() - link.heard > self._deadline_seconds:
                link.silent, self._link = True, None
                link.stream.cancel()

    async def _fail(self, running: _Running, code: grpc.StatusCode, message: str) -> None:
        metrics.UPSTREAM_ERRORS.labels("triton", code.name).inc()
        await self._refuse(running.request, code, "UPSTREAM", message)

    async def _refuse(
        self, request: llm_pb2.RunRequest, code: grpc.StatusCode, reason: str, message: str
    ) -> None:
        response = llm_pb2.RunResponse(
            operation_id=request.operation_id,
            session_id=request.session_id,
            branch=request.branch,
            epoch=request.epoch,
        )
        response.error.code, response.error.reason = code.value[0], reason
        response.error.message = message
        await self._responses.put(response)
