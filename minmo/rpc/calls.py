"""What happens around every call of a service: admission, limits, metrics, logs, errors.

One interceptor does it all in a fixed order: bind the logging context, refuse (draining, token,
starting, limits), run the handler, turn what it raised into a status, count. Health, load reports
and reflection pass by.
"""

from __future__ import annotations

import asyncio
import hmac
import inspect
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
import structlog
from grpc_status import rpc_status

from minmo.rpc import health, load, metrics
from minmo.rpc.errors import (
    DRAINING,
    StatusError,
    internal,
    resource_exhausted,
    unauthenticated,
    unavailable,
)
from minmo.rpc.metadata import AUTHORIZATION_KEY, SESSION_KEY, TURN_KEY, bearer
from minmo.rpc.writing import write_within

_PASS_BY = (f"/{health.SERVICE_NAME}/", f"/{load.SERVICE_NAME}/", "/grpc.reflection.")
_MAX_LOGGED_CHARACTERS = 64
_RETRY_AFTER_SECONDS = 1.0

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Limits:
    """How many calls may run in this process at the same time, and how slow callers may be."""

    streams: int
    unary_calls: int
    read_seconds: float
    """How long a caller may leave an answer of a stream unread."""


@dataclass(eq=False)
class _Call:
    """One call that was let in."""

    streaming: bool
    task: asyncio.Task[Any]
    evicted: bool = False


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the handler of every call, and knows which calls are running.

    Args:
        readiness: calls are refused with UNAVAILABLE before it has started and while it drains.
        limits: calls over them are refused with RESOURCE_EXHAUSTED.
        tokens: any of these lets a caller in that sends ``authorization: Bearer TOKEN``; none
            lets everybody in.
    """

    def __init__(
        self, readiness: health.Readiness, limits: Limits, tokens: Sequence[str] = ()
    ) -> None:
        self._readiness = readiness
        self._limits = limits
        self._authorizations = [bearer(token).encode() for token in tokens]
        self._running: set[_Call] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        metrics.STREAMS_LIMIT.set(limits.streams)

    @property
    def running(self) -> int:
        """Calls that were let in and have not ended."""
        return len(self._running)

    @property
    def utilization(self) -> float:
        """Share of the streams that may run, or of the unary calls if that is more; above 0."""
        streams = sum(call.streaming for call in self._running)
        unary_calls = len(self._running) - streams
        return max(
            (streams + 1) / (self._limits.streams + 1),
            unary_calls / self._limits.unary_calls,
        )

    async def wait_idle(self) -> None:
        """Returns when no call runs."""
        await self._idle.wait()

    def evict(self) -> None:
        """Ends every running call with UNAVAILABLE; its handler sees a cancellation."""
        for call in self._running:
            call.evicted = True
            call.task.cancel()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        """Called by gRPC for each call, before its handler."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(_PASS_BY):
            return handler
        return self._wrap(handler, method)

    def _wrap(self, handler: _Handler, method: str) -> _Handler:
        behaviour: Any
        if handler.request_streaming and handler.response_streaming:
            behaviour, adapt = handler.stream_stream, grpc.stream_stream_rpc_method_handler
        elif handler.request_streaming:
            behaviour, adapt = handler.stream_unary, grpc.stream_unary_rpc_method_handler
        elif handler.response_streaming:
            behaviour, adapt = handler.unary_stream, grpc.unary_stream_rpc_method_handler
        else:
            behaviour, adapt = handler.unary_unary, grpc.unary_unary_rpc_method_handler
        streaming = bool(handler.request_streaming or handler.response_streaming)

        async def run(request: Any, context: _Context) -> Any:
            return await self._run(method, streaming, behaviour, request, context)

        return adapt(run, handler.request_deserializer, handler.response_serializer)

    async def _run(
        self, method: str, streaming: bool, behaviour: Any, request: Any, context: _Context
    ) -> Any:
        headers = _headers(context)
        _bind_log_context(method, context, headers)
        task = asyncio.current_task()
        assert task is not None, "gRPC runs every handler in a task of its own"
        call = _Call(streaming, task)
        code = grpc.StatusCode.UNKNOWN
        in_flight = metrics.RPC_IN_FLIGHT.labels(method)
        in_flight.inc()
        began = time.perf_counter()
        try:
            try:
                self._admit(call, headers)
                with self._counted(call):
                    result = await self._respond(behaviour, request, context)
                code = _code_set_by_handler(context) or grpc.StatusCode.OK
                return result
            except grpc.aio.AbortError:
                code = _code_set_by_handler(context) or code
                raise
            except (asyncio.CancelledError, grpc.aio.InternalError):
                # InternalError is what a write raises once the peer is gone.
                if not call.evicted:
                    code = _code_of_cancellation(context)
                    raise
                task.uncancel()
                status = unavailable("the server is stopping; call again", reason=DRAINING)
            except StatusError as error:
                status = error
            except Exception as error:
                status = _hidden(error)
            code = status.code
            log.info("call failed", code=code.name, reason=status.reason, message=status.message)
            await context.abort_with_status(rpc_status.to_status(status.to_status()))
        finally:
            in_flight.dec()
            metrics.RPC_HANDLED.labels(method, code.name).inc()
            metrics.RPC_DURATION.labels(method).observe(time.perf_counter() - began)

    def _admit(self, call: _Call, headers: dict[str, str | bytes]) -> None:
        try:
            self._check(call, headers)
        except StatusError as refusal:
            metrics.RPC_REJECTED.labels(refusal.reason).inc()
            raise

    def _check(self, call: _Call, headers: dict[str, str | bytes]) -> None:
        if self._readiness.draining:
            raise unavailable(
                "the server is draining and takes no new calls; call again",
                reason=DRAINING,
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )
        self._authenticate(headers)
        if not self._readiness.started:
            raise unavailable(
                "the server is starting; call again",
                reason="STARTING",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )
        limit, kind = (
            (self._limits.streams, "streams")
            if call.streaming
            else (self._limits.unary_calls, "unary calls")
        )
        if sum(other.streaming == call.streaming for other in self._running) >= limit:
            raise resource_exhausted(
                f"this server has {limit} {kind} open, its limit; call again later "
                f"or raise --max-{kind.replace(' ', '-')}",
                limit=f"{limit} {kind}",
                reason="TOO_MANY_STREAMS" if call.streaming else "TOO_MANY_CALLS",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )

    def _authenticate(self, headers: dict[str, str | bytes]) -> None:
        if not self._authorizations:
            return
        sent = headers.get(AUTHORIZATION_KEY)
        if sent is None:
            raise unauthenticated(
                "no API token: send the metadata 'authorization: Bearer TOKEN'",
                reason="TOKEN_MISSING",
            )
        given = sent if isinstance(sent, bytes) else sent.encode()
        matches = [hmac.compare_digest(given, known) for known in self._authorizations]
        if not any(matches):
            raise unauthenticated("the API token is not one of this server", reason="TOKEN_BAD")

    async def _respond(self, behaviour: Any, request: Any, context: _Context) -> Any:
        """Runs a handler, whether it returns its response, yields responses, or writes them."""
        outcome = behaviour(request, context)
        if inspect.isasyncgen(outcome):
            # Closing it here, not when it is collected, ends the handler's work with the call.
            async with aclosing(outcome) as responses:
                async for response in responses:
                    await write_within(self._limits.read_seconds, context.write, response)
            return None
        if not inspect.isawaitable(outcome):
            raise TypeError(f"{behaviour!r} must be a coroutine or an asynchronous generator")
        return await outcome

    @contextmanager
    def _counted(self, call: _Call) -> Iterator[None]:
        self._running.add(call)
        self._idle.clear()
        if call.streaming:
            metrics.STREAMS.inc()
        try:
            yield
        finally:
            self._running.discard(call)
            if call.streaming:
                metrics.STREAMS.dec()
            if not self._running:
                self._idle.set()


def _hidden(error: Exception) -> StatusError:
    """What the caller is told of an error that nobody expected: an id that is in the log."""
    error_id = uuid.uuid4().hex[:12]
    log.error("handler failed", error_id=error_id, exc_info=error)
    return internal(
        f"internal error; the log of the service explains it under error id {error_id}",
        reason="UNEXPECTED",
        metadata={"error_id": error_id},
    )


def _headers(context: _Context) -> dict[str, str | bytes]:
    return dict(context.invocation_metadata() or ())


def _bind_log_context(method: str, context: _Context, headers: dict[str, str | bytes]) -> None:
    # Each call runs in a task of its own, so the context ends with it.
    structlog.contextvars.bind_contextvars(method=method, peer=context.peer())
    for name, key in (("session", SESSION_KEY), ("turn", TURN_KEY)):
        if value := headers.get(key):
            structlog.contextvars.bind_contextvars(**{name: str(value)[:_MAX_LOGGED_CHARACTERS]})


def _code_set_by_handler(context: _Context) -> grpc.StatusCode | None:
    return context.code() or None


def _code_of_cancellation(context: _Context) -> grpc.StatusCode:
    remaining = context.time_remaining()
    if remaining is not None and remaining <= 0:
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return grpc.StatusCode.CANCELLED
