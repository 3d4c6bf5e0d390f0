"""One caller's stream: its operations on their way to Triton, and what comes back."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from dataclasses import dataclass, field
from typing import Any

import grpc
import structlog

from minmo.engine.prompt import ChatFormat, TextStream
from minmo.rpc import metrics, tracing
from minmo.rpc.errors import DRAINING, unavailable
from minmo.rpc.health import Readiness
from minmo.rpc.queues import BoundedStream
from minmo.v1 import llm_pb2
from services.llm.prompt import PromptReader
from services.llm.triton import StreamEndedError, TritonModel, TritonStream, describe_loss

log = structlog.get_logger(__name__)

# About ten seconds of eight generations; who reads nothing for so long is given up.
_MAX_WAITING_RESPONSES = 1024
_WATCH_SECONDS = 1.0
_QUIET_SECONDS = 0.3


@dataclass(eq=False)
class _Running:
    """An operation that Triton has not finished.

    Attributes:
        request: as it came.
        text: of its tokens so far.
        sent: when it was sent (monotonic seconds).
        trace: from its receipt to its end.
        answered: when the latest response came.
    """

    request: llm_pb2.RunRequest
    text: TextStream
    sent: float
    trace: tracing.Span = tracing.NONE
    answered: float | None = None

    def heard(self, response: llm_pb2.RunResponse) -> None:
        """Records what a response says of the way to Triton, and of Triton itself."""
        now, before = time.monotonic(), self.answered
        self.answered = now
        operation = str(self.request.WhichOneof("operation"))
        if before is None:
            metrics.HOP_TRITON.labels(operation).observe(now - self.sent)
            self.trace.event("first_answer", now)
        elif response.HasField("token"):
            metrics.TOKEN_INTERVAL.observe(now - before)
        for done in ("prefill_done", "generate_done", "probe_done"):
            if response.HasField(done):
                seconds = getattr(response, done).elapsed_ms / 1000
                metrics.TRITON_ENGINE.labels(operation).observe(seconds)
                if operation == "probe":
                    continue
                # No span can be made inside Triton's model; its last answer says how long it took.
                engine = tracing.begin(
                    f"triton.{operation}", parent=self.trace, began=now - seconds
                )
                engine.end(now)
        if response.HasField("error"):
            metrics.OPERATION_ERRORS.labels(response.error.reason).inc()
            self.trace.end(failure=response.error.reason)
        elif not response.HasField("token"):
            self.trace.end(now)


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
        readiness: of the process; once it drains, the stream ends when nothing runs.
    """

    def __init__(
        self,
        triton: TritonModel,
        reader: PromptReader,
        max_operations: int,
        deadline_seconds: float,
        readiness: Readiness,
    ) -> None:
        self._triton = triton
        self._reader = reader
        self._chat: ChatFormat = reader.chat
        self._max_operations = max_operations
        self._deadline_seconds = deadline_seconds
        self._readiness = readiness
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
            StatusError: RESOURCE_EXHAUSTED, the caller does not read; or UNAVAILABLE, the process
                stops, and another one is to go on.
        """
        self._spawn(self._take(requests))
        self._spawn(self._watch())
        self._spawn(self._leave())
        try:
            async for response in self._responses:
                yield response
        finally:
            if self._link is not None:
                self._link.stream.cancel()
                for running in self._link.running.values():
                    running.trace.end(failure="CANCELLED")
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            metrics.TRITON_OPERATIONS.dec(self._running)

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
        operation = request.WhichOneof("operation")
        trace = tracing.NONE
        if operation != "probe":  # there are seven a second
            trace = tracing.begin(str(operation), parent=request.traceparent, kind="server")
        text = TextStream(self._chat)
        link.running[number] = _Running(request, text, time.monotonic(), trace)
        self._running += 1
        metrics.TRITON_OPERATIONS.inc()
        self._idle.clear()
        # Where this fails, the receiving side sees the stream end, and answers for all that ran.
        with contextlib.suppress(grpc.aio.AioRpcError, StreamEndedError):
            await link.stream.send(number, prepared)

    async def _receive(self, link: _Link) -> None:
        code, message = grpc.StatusCode.UNAVAILABLE, "Triton ended the stream; try again"
        metrics.TRITON_STREAMS.inc()
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
        finally:
            metrics.TRITON_STREAMS.dec()
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
        running.heard(response)
        if response.HasField("token"):
            response.token.text = running.text.add(response.token.id)
            await self._responses.put(response)
        else:
            if response.HasField("prefill_done") and running.request.prefill.return_tokens:
                response.prefill_done.tokens.extend(self._reader.pieces(running.request))
            await self._responses.put(response)
            self._end(link, number)

    def _end(self, link: _Link, number: int) -> None:
        del link.running[number]
        self._running -= 1
        metrics.TRITON_OPERATIONS.dec()
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

    async def _leave(self) -> None:
        """Ends the stream of a process that stops, when nothing has run for a moment."""
        await self._readiness.wait_draining()
        began = None
        while began is None or began != self._next_number:
            # What is read is mostly answered at once.
            await self._idle.wait()
            began = self._next_number
            await asyncio.sleep(_QUIET_SECONDS)
        self._responses.fail(
            unavailable(
                "the LLM service is stopping: open another stream, and read everything again",
                reason=DRAINING,
            )
        )

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
        metrics.count_hop_error("triton", code)
        running.trace.end(failure="UPSTREAM")
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
        metrics.OPERATION_ERRORS.labels(reason).inc()
        await self._responses.put(response)
