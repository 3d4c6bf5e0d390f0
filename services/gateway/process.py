"""The gateway's process: how it starts, serves and stops, as `minmo.rpc.server` has the others do.

It listens for HTTP in the place of gRPC. SIGTERM or SIGINT drain it: no new connections, those that
talk go on to the end of the answer for ``drain_seconds``; a second signal stops at once.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from functools import partial

import grpc
import structlog
import uvloop
from aiohttp import web

from minmo.rpc import client, metrics, threads, tracing
from minmo.rpc import logging as rpc_logging
from minmo.rpc.following import follow, keep_running
from minmo.rpc.health import Readiness
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
from minmo.settings import GatewaySettings
from services.gateway.auth import Gatekeeper
from services.gateway.page_files import Page
from services.gateway.server import Server

NAME = "gateway"
_ORCHESTRATOR_MESSAGE_BYTES = 32 * 1024 * 1024
_HEADER_BYTES = 16 * 1024

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def serve(settings: GatewaySettings) -> None:
    """Runs the gateway until SIGTERM or SIGINT: the ``main`` of its process.

    Raises:
        SystemExit: 1 when it could not start, 128 + the signal's number after a second signal.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    threads.limit(settings.threads)
    rpc_logging.configure(settings.log_level, settings.log_format, NAME)
    metrics.publish(NAME)
    status = uvloop.run(_Process(settings).run())
    if status != 0:
        raise SystemExit(status)


class _Process(Process):
    def __init__(self, settings: GatewaySettings) -> None:
        super().__init__(settings)
        self._settings = settings
        self._readiness = Readiness()

    async def serve(self) -> None:
        """Serves; see `Process`."""
        settings = self._settings
        tracing.start(NAME, settings)
        gatekeeper = Gatekeeper(settings)
        async with self._channel() as channel:
            server = Server(settings, channel, self._readiness, gatekeeper, Page())
            # Access is not logged: addresses may carry session ids.
            runner = web.AppRunner(
                server.application(),
                access_log=None,
                handle_signals=False,
                max_line_size=_HEADER_BYTES,
                max_field_size=_HEADER_BYTES,
                shutdown_timeout=1.0,
            )
            await runner.setup()
            self._readiness.set_not_ready("no orchestrator has answered yet", "orchestrator")
            watching = asyncio.create_task(keep_running(partial(self._watch_orchestrator, channel)))
            try:
                address = await self._listen(runner)
                metrics_address = serve_http(settings, self._readiness)
                if gatekeeper.open and not is_local(settings.host):
                    log.warning("whoever reaches this address may talk: set keys", address=address)
                self._readiness.mark_started()
                write_ready_file(settings.ready_file, NAME, address, metrics_address)
                log.info("ready", address=address, settings=settings.model_dump(mode="json"))
                await self._asked_to_stop.wait()
                self._readiness.mark_draining()
                log.info("draining", running=server.connections, seconds=settings.drain_seconds)
                await server.drain(settings.drain_seconds)
            finally:
                self._readiness.mark_draining()
                watching.cancel()
                remove(settings.ready_file)
                await runner.cleanup()
                log.info("stopped")

    def _channel(self) -> grpc.aio.Channel:
        settings = self._settings
        return client.channel(
            settings.orchestrator_address,
            tls_ca=settings.upstream_ca,
            tls_cert=settings.upstream_cert,
            tls_key=settings.upstream_key,
            max_message_bytes=_ORCHESTRATOR_MESSAGE_BYTES,
            balancing="by_load",
        )

    async def _watch_orchestrator(self, channel: grpc.aio.Channel) -> None:
        """Says on /readyz whether there is an orchestrator."""

        def tell(problem: str) -> None:
            if problem:
                self._readiness.set_not_ready(f"no orchestrator: {problem}", "orchestrator")
            else:
                self._readiness.set_ready("orchestrator")

        await follow(channel, tell, self._problem_of_orchestrator)

    async def _problem_of_orchestrator(self) -> str:
        settings = self._settings
        return await client.problem_of(
            settings.orchestrator_address,
            tls_ca=settings.upstream_ca,
            tls_cert=settings.upstream_cert,
            tls_key=settings.upstream_key,
        )

    async def _listen(self, runner: web.AppRunner) -> str:
        settings = self._settings
        site = web.TCPSite(
            runner,
            settings.host,
            settings.port,
            ssl_context=self._tls(),
            reuse_address=True,
            reuse_port=False,
        )
        try:
            await site.start()
        except OSError as error:
            raise StartError(
                f"cannot listen on {join(settings.host, settings.port)}: "
                f"{port_advice(error, '--port')}"
            ) from None
        host, port = runner.addresses[0][:2]
        return join(host, port)

    def _tls(self) -> ssl.SSLContext | None:
        settings = self._settings
        if settings.tls_cert is None or settings.tls_key is None:
            return None
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.load_cert_chain(settings.tls_cert, settings.tls_key)
            if settings.tls_client_ca is not None:
                context.load_verify_locations(settings.tls_client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except OSError as error:  # ssl.SSLError is one
            raise StartError(f"TLS cannot use {settings.tls_cert}: {error}") from None
        return context
