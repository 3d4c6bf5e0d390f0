"""The one way in which every MinMo service starts, serves and stops.

A service's process is::

    class EncoderService:
        name = "encoder"
        def __init__(self, settings: EncoderSettings) -> None: ...
        async def start(self) -> None: ...       # load weights, warm up
        def register(self, server: grpc.aio.Server) -> Sequence[str]: ...
        async def stop(self) -> None: ...

    def main() -> None:
        serve(EncoderSettings.load("minmo-encoder"), EncoderService)

`serve` gives it health, reflection, metrics over HTTP, logs, TLS, the API token, limits, statuses
for what its handlers raise, and a graceful end. Handlers are coroutines or asynchronous generators;
they raise what `minmo.rpc.errors` makes. When a client cancels, a handler that reads may see its
requests end first and be cancelled right after: the end of the requests alone proves nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import grpc
import structlog
import uvloop
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from minmo.rpc import logging as rpc_logging
from minmo.rpc import metrics, threads, tracing
from minmo.rpc.calls import CallInterceptor, Limits
from minmo.rpc.health import SERVICE_NAME as HEALTH_SERVICE
from minmo.rpc.health import HealthServicer, Readiness
from minmo.rpc.load import add_load_reports
from minmo.rpc.process import (
    Process,
    StartError,
    is_local,
    join,
    port_advice,
    remove,
    serve_http,
    write_ready_file,
)
from minmo.settings import ServiceSettings

# What ends at the last must not keep the process from ending.
_EVICTION_SECONDS = 2.0
_LAST_WORDS_SECONDS = 2.0
_STOP_SECONDS = 10.0
# gRPC counts health, load reports and reflection too, and answers over this limit without saying
# which it is. Every connection of a client has one call each of the first two.
_RESERVED_CALLS = 1024

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

Settings = TypeVar("Settings", bound=ServiceSettings)


class Service(Protocol):
    """What a service brings; the rest is `serve`'s."""

    name: str
    """Short name, as in ``encoder``: for logs, metrics and the ready file."""

    async def start(self) -> None:
        """Loads and warms up; calls are refused until it returns. An exception ends the process.

        Long work belongs in ``asyncio.to_thread``, so that health is answered meanwhile.
        """

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        """Adds the servicers; returns the full names of their services."""

    async def stop(self) -> None:
        """Releases what `start` took; called after the last call has ended."""


@runtime_checkable
class ReportsReadiness(Protocol):
    """A service that has a say in its health: it makes the `Readiness` that `serve` then uses."""

    readiness: Readiness


def serve(settings: Settings, build: Callable[[Settings], Service]) -> None:
    """Runs a service until SIGTERM or SIGINT: the ``main`` of its process.

    On the first signal it drains: health says NOT_SERVING, new calls get UNAVAILABLE, running ones
    have ``drain_seconds`` (long streams watch `Readiness.wait_draining` to end at a good moment).
    A second signal stops at once. Returns after a graceful end.

    Args:
        settings: what the process was told.
        build: makes the service, within the running event loop; called once.

    Raises:
        SystemExit: 1 when the service could not start, 128 + the signal's number after a second
            signal.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    threads.limit(settings.threads)
    rpc_logging.configure(settings.log_level, settings.log_format)
    status = uvloop.run(_Process(settings, build).run())
    if status != 0:
        raise SystemExit(status)


class _Process(Process):
    """One service process from its start to its end."""

    def __init__(self, settings: Settings, build: Callable[[Settings], Service]) -> None:
        super().__init__(settings)
        self._settings: ServiceSettings = settings
        self._build: Callable[[], Service] = lambda: build(settings)

    async def serve(self) -> None:
        """Serves; see `Process`."""
        settings, service = self._settings, self._build()
        rpc_logging.configure(settings.log_level, settings.log_format, service.name)
        metrics.publish(service.name)
        tracing.start(service.name, settings)
        readiness = service.readiness if isinstance(service, ReportsReadiness) else Readiness()
        interceptor = CallInterceptor(
            readiness,
            Limits(settings.max_streams, settings.max_unary_calls, settings.read_deadline_seconds),
            settings.tokens,
        )
        server = _make_server(settings, interceptor)
        names = list(service.register(server))
        add_load_reports(server, lambda: interceptor.utilization, readiness)
        health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(readiness, names), server)
        reflection.enable_server_reflection(
            [*names, HEALTH_SERVICE, reflection.SERVICE_NAME], server
        )
        address = _listen(server, settings)
        metrics_address = serve_http(settings, readiness)
        await server.start()
        try:
            log.info("starting", address=address, metrics_address=metrics_address)
            if not await self._unless_stopped(service.start()):
                return
            readiness.mark_started()
            write_ready_file(settings.ready_file, service.name, address, metrics_address)
            log.info("ready", address=address, settings=settings.model_dump(mode="json"))
            await self._asked_to_stop.wait()
            readiness.mark_draining()
            await self._drain(interceptor)
        finally:
            readiness.mark_stopping()
            remove(settings.ready_file)
            await server.stop(_LAST_WORDS_SECONDS)
            if not await _within(_STOP_SECONDS, service.stop()):
                log.error("the service did not stop in time", seconds=_STOP_SECONDS)
            log.info("stopped")

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> bool:
        """Runs `work`; False if a signal came first, which cancels it."""
        task = asyncio.create_task(work)
        asked = asyncio.create_task(self._asked_to_stop.wait())
        await asyncio.wait({task, asked}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if task.done():
            task.result()
            return True
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return False

    async def _drain(self, interceptor: CallInterceptor) -> None:
        seconds = self._settings.drain_seconds
        log.info("draining", running=interceptor.running, seconds=seconds)
        if await _within(seconds, interceptor.wait_idle()):
            return
        log.warning("ending the calls that still run", running=interceptor.running)
        interceptor.evict()
        if not await _within(_EVICTION_SECONDS, interceptor.wait_idle()):
            log.error("handlers ignore their cancellation", running=interceptor.running)


def _make_server(settings: ServiceSettings, interceptor: CallInterceptor) -> grpc.aio.Server:
    keepalive_ms = int(settings.keepalive_seconds * 1000)
    return grpc.aio.server(
        interceptors=[interceptor],
        maximum_concurrent_rpcs=3 * settings.max_streams
        + settings.max_unary_calls
        + _RESERVED_CALLS,
        options=[
            # Two processes on one port would share its connections without anybody noticing.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.max_send_message_length", settings.max_message_bytes),
            # A client that vanished (no FIN: a lost network, a stopped machine) is noticed
            # after the time between pings and the time to wait for their answer.
            ("grpc.keepalive_time_ms", keepalive_ms),
            ("grpc.keepalive_timeout_ms", keepalive_ms),
            # Without it the minute that gRPC gives every ping outlasts the time above.
            ("grpc.http2.ping_timeout_ms", keepalive_ms),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            # Clients may ping as often as minmo.rpc.client does, with room for jitter.
            ("grpc.http2.min_ping_interval_without_data_ms", keepalive_ms // 2),
            # Calls that run go on over it; the client resolves the name again for those that come.
            ("grpc.max_connection_age_ms", int(settings.max_connection_seconds * 1000)),
        ],
    )


def _listen(server: grpc.aio.Server, settings: ServiceSettings) -> str:
    target = join(settings.host, settings.port)
    credentials = _credentials(settings)
    try:
        port = (
            server.add_insecure_port(target)
            if credentials is None
            else server.add_secure_port(target, credentials)
        )
    except RuntimeError:
        raise StartError(f"cannot listen on {target}: {_bind_problem(settings)}") from None
    if settings.token is None and settings.tls_client_ca is None and not is_local(settings.host):
        log.warning("whoever reaches this address may call: set a token", address=target)
    return join(settings.host, port)


def _credentials(settings: ServiceSettings) -> grpc.ServerCredentials | None:
    certificate, key, client_ca = settings.tls_cert, settings.tls_key, settings.tls_client_ca
    if certificate is None or key is None:
        return None
    try:
        check = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        check.load_cert_chain(certificate, key)
        if client_ca is not None:
            check.load_verify_locations(client_ca)
        return grpc.ssl_server_credentials(
            [(key.read_bytes(), certificate.read_bytes())],
            root_certificates=client_ca.read_bytes() if client_ca else None,
            require_client_auth=client_ca is not None,
        )
    except OSError as error:  # ssl.SSLError is one
        files = ", ".join(str(file) for file in (certificate, key, client_ca) if file)
        raise StartError(f"TLS cannot use {files}: {error}") from None


def _bind_problem(settings: ServiceSettings) -> str:
    """gRPC does not say why it cannot bind: asks the operating system once more."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except OSError as error:
        return port_advice(error, "--port")
    return "gRPC refuses it; is --host an address of this machine?"


async def _within(seconds: float, work: Awaitable[None]) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        return False
    return True
