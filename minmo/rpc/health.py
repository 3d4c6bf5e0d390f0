"""Whether a service takes calls, and the health service (``grpc.health.v1``) that says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from typing_extensions import override

from minmo.rpc import metrics
from minmo.rpc.metadata import NOT_READY_KEY

SERVICE_NAME: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

_Response = health_pb2.HealthCheckResponse

_LOG_SECONDS = 0.2

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Readiness:
    """Starting, serving or draining, and what the service itself has to say.

    `minmo.rpc.server` moves it along. A service that wants a part in it makes one, keeps it in its
    attribute ``readiness``, and calls `set_not_ready` when something that it needs is gone
    (clients and load balancers then look elsewhere; calls that come still reach the service) and
    `set_ready` when that is back. Long streams may watch `wait_draining` to end at a good moment.
    """

    def __init__(self) -> None:
        self._started = False
        self._draining = asyncio.Event()
        self._stopping = asyncio.Event()
        self._problems: dict[metrics.NotReady, str] = {}
        self._logged = ""
        self._logs_soon = False
        self._changed = asyncio.Event()

    @property
    def reason(self) -> str:
        """Why the service is not ready; empty if it is."""
        if self._draining.is_set():
            return "draining"
        return "; ".join(self._problems.values()) or ("" if self._started else "starting")

    @property
    def ready(self) -> bool:
        """True if health says SERVING."""
        return not self.reason

    @property
    def started(self) -> bool:
        """True from the end of the service's start on."""
        return self._started

    @property
    def draining(self) -> bool:
        """True once the process was told to stop."""
        return self._draining.is_set()

    @property
    def stopping(self) -> bool:
        """True once no call runs any more: who watches has nothing more to learn."""
        return self._stopping.is_set()

    def set_not_ready(self, reason: str, lacks: metrics.NotReady = "other") -> None:
        """The service cannot do its work.

        Args:
            reason: why, in plain words.
            lacks: what it lacks, as the metrics say it; each lack has one reason at a time.
        """
        self._problems[lacks] = reason or "not ready"
        self._notify()

    def set_ready(self, lacks: metrics.NotReady | None = None) -> None:
        """The service has what it lacked: all that it lacked, if `lacks` is None."""
        if not self._problems or (lacks is not None and lacks not in self._problems):
            return
        if lacks is None:
            self._problems.clear()
        else:
            self._problems.pop(lacks, None)
        self._notify()

    async def wait_complete(self) -> None:
        """Returns when the service lacks nothing."""
        while self._problems:
            await self._changed.wait()

    async def wait_draining(self) -> None:
        """Returns when the process was told to stop."""
        await self._draining.wait()

    async def wait_stopping(self) -> None:
        """Returns when the process is about to end."""
        await self._stopping.wait()

    def mark_started(self) -> None:
        """For `minmo.rpc.server`: the service's start has returned."""
        self._started = True
        self._notify()

    def mark_draining(self) -> None:
        """For `minmo.rpc.server`: no more new calls."""
        self._draining.set()
        self._notify()

    def mark_stopping(self) -> None:
        """For `minmo.rpc.server`: the calls that ran have ended."""
        self._draining.set()
        self._stopping.set()
        self._notify()

    async def changes(self) -> AsyncIterator[bool]:
        """`ready` now, and again whenever it changes, until the process is about to end."""
        last: bool | None = None
        while True:
            changed = self._changed
            if self.ready != last:
                last = self.ready
                yield last
            if self.stopping:
                return
            await changed.wait()

    def _lacks(self) -> set[metrics.NotReady]:
        if self._draining.is_set():
            return {"draining"}
        if self._problems or self._started:
            return set(self._problems)
        return {"starting"}

    def _notify(self) -> None:
        metrics.set_readiness(self._lacks())
        if not self._logs_soon:
            # What is lacking at a start is found out one by one.
            self._logs_soon = True
            asyncio.get_running_loop().call_later(_LOG_SECONDS, self._log)
        self._changed.set()
        self._changed = asyncio.Event()

    def _log(self) -> None:
        """Says what the service lacks, and when it lacks nothing any more."""
        self._logs_soon = False
        problems = "" if self.draining else "; ".join(self._problems.values())
        if problems and problems != self._logged:
            log.warning("not ready", reason=problems)
        elif self._logged and not (problems or self.draining):
            log.info("ready again", lacked=self._logged)
        self._logged = problems


class HealthServicer(health_pb2_grpc.HealthServicer):
    """``grpc.health.v1`` over one `Readiness`, for the process ("") and each of its services.

    (The servicer of grpcio-health-checking forgets all watchers of a service when one leaves.)
    """

    def __init__(self, readiness: Readiness, services: Iterable[str]) -> None:
        self._readiness = readiness
        self._services = frozenset(services) | {""}

    @override
    async def Check(
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[
            health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
        ],
    ) -> health_pb2.HealthCheckResponse:
        """The state now; NOT_FOUND for a service that is not here."""
        if request.service not in self._services:
            await context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"no service {request.service[:200]!r} here; there are: "
                + ", ".join(sorted(name for name in self._services if name)),
            )
        if reason := self._readiness.reason:
            context.set_trailing_metadata(((NOT_READY_KEY, _header_text(reason)),))
        return _response(self._readiness.ready)

    @override
    async def Watch(
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[
            health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
        ],
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The state now and at every change; SERVICE_UNKNOWN for a service that is not here.

        Goes on while the process drains: a client whose call ended would ask again, and again.
        """
        if request.service not in self._services:
            yield _Response(status=_Response.SERVICE_UNKNOWN)
            return
        async for ready in self._readiness.changes():
            yield _response(ready)


def _response(ready: bool) -> health_pb2.HealthCheckResponse:
    return _Response(status=_Response.SERVING if ready else _Response.NOT_SERVING)


def _header_text(text: str) -> str:
    return text.encode("ascii", "replace").decode().replace("\n", " ")[:500]
