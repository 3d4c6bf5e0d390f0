"""Whether a service takes calls, and the health service (``grpc.health.v1``) that says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from typing_extensions import override

from minmo.rpc import metrics
from minmo.rpc.metadata import NOT_READY_KEY

SERVICE_NAME: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

_Response = health_pb2.HealthCheckResponse


class Readiness:
    """Starting, serving or draining, and what the service itself has to say.

    `minmo.rpc.server` moves it along. A service that wants a part in it makes one, keeps it in its
    attribute ``readiness``, and calls `set_not_ready` when something that it needs is gone
    (load balancers then look elsewhere; calls that come still reach the service) and `set_ready`
    when that is back. Long streams may watch `wait_draining` to end at a good moment.
    """

    def __init__(self) -> None:
        self._started = False
        self._draining = asyncio.Event()
        self._problem = ""
        self._changed = asyncio.Event()

    @property
    def reason(self) -> str:
        """Why the service is not ready; empty if it is."""
        if self._draining.is_set():
            return "draining"
        return self._problem or ("" if self._started else "starting")

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

    def set_not_ready(self, reason: str) -> None:
        """The service cannot do its work, for a reason in plain words."""
        self._problem = reason or "not ready"
        self._notify()

    def set_ready(self) -> None:
        """The service can do its work again."""
        self._problem = ""
        self._notify()

    async def wait_draining(self) -> None:
        """Returns when the process was told to stop."""
        await self._draining.wait()

    def mark_started(self) -> None:
        """For `minmo.rpc.server`: the service's start has returned."""
        self._started = True
        self._notify()

    def mark_draining(self) -> None:
        """For `minmo.rpc.server`: no more new calls."""
        self._draining.set()
        self._notify()

    async def changes(self) -> AsyncIterator[bool]:
        """`ready` now, and again whenever it changes."""
        last: bool | None = None
        while True:
            changed = self._changed
            if self.ready != last:
                last = self.ready
                yield last
            await changed.wait()

    def _notify(self) -> None:
        metrics.READY.set(self.ready)
        self._changed.set()
        self._changed = asyncio.Event()


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

        Ends when the process drains, so that it need not wait for those who watch.
        """
        if request.service not in self._services:
            yield _Response(status=_Response.SERVICE_UNKNOWN)
            return
        async for ready in self._readiness.changes():
            yield _response(ready)
            if self._readiness.draining:
                return


def _response(ready: bool) -> health_pb2.HealthCheckResponse:
    return _Response(status=_Response.SERVING if ready else _Response.NOT_SERVING)


def _header_text(text: str) -> str:
    return text.encode("ascii", "replace").decode().replace("\n", " ")[:500]
