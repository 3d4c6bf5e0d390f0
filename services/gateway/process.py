"""The gateway's process: how it starts, serves and stops, as `minmo.rpc.server` has the others do.

It listens for HTTP in the place of gRPC. SIGTERM or SIGINT drain it: no new connections, those that
talk go on to the end of the answer for ``drain_seconds``; a second signal stops at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import signal
import ssl
from pathlib import Path

import grpc
import prometheus_client
import structlog
import uvloop
from aiohttp import web

from minmo.rpc import client, metrics, threads
from minmo.rpc import logging as rpc_logging
from minmo.rpc.errors import StatusError
from minmo.rpc.health import Readiness
from minmo.rpc.server import EXIT_FAILED, StartError
from minmo.settings import GatewaySettings
from services.gateway.auth import Gatekeeper, KeysError
from services.gateway.page_files import Page
from services.gateway.server import Server

NAME = "gateway"
_PROBE_SECONDS = 2.0
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
    metrics.set_build(NAME)
    status = uvloop.run(_Process(settings).run())
    if status != 0:
        raise SystemExit(status)


class _Process:
    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._asked_to_stop = asyncio.Event()
        self._readiness = Readiness()

    async def run(self) -> int:
        """Serves; returns the exit status of the process."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            await self._serve()
        except (StartError, KeysError) as error:
            log.error("cannot start", reason=str(error))
            return EXIT_FAILED
        except Exception:
            log.exception("failed")
            return EXIT_FAILED
        return 0

    def _on_signal(self, number: int) -> None:
        if not self._asked_to_stop.is_set():
            self._asked_to_stop.set()
            return
        log.warning("stopping at once: second signal", signal=signal.Signals(number).name)
        if self._settings.ready_file is not None:
            self._settings.ready_file.unlink(missing_ok=True)
        os._exit(128 + number)

    async def _serve(self) -> None:
        settings = self._settings
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
            watching = asyncio.create_task(self._watch_orchestrator())
            try:
                address = await self._listen(runner)
                metrics_address = self._serve_metrics()
                if gatekeeper.open and not _is_local(settings.host):
                    log.warning("whoever reaches this address may talk: set keys", address=address)
                self._readiness.mark_started()
                self._write_ready_file(address, metrics_address)
                log.info("ready", address=address, settings=settings.model_dump(mode="json"))
                await self._asked_to_stop.wait()
                self._readiness.mark_draining()
                log.info("draining", running=server.connections, seconds=settings.drain_seconds)
                await server.drain(settings.drain_seconds)
            finally:
                self._readiness.mark_draining()
                watching.cancel()
                if settings.ready_file is not None:
                    settings.ready_file.unlink(missing_ok=True)
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
        )

    async def _watch_orchestrator(self) -> None:
        """Says on /readyz whether there is an orchestrator."""
        settings = self._settings
        while True:
            try:
                await client.wait_ready(
                    settings.orchestrator_address,
                    deadline_seconds=_PROBE_SECONDS,
                    tls_ca=settings.upstream_ca,
                    tls_cert=settings.upstream_cert,
                    tls_key=settings.upstream_key,
                )
            except StatusError as failure:
                self._readiness.set_not_ready(f"no orchestrator: {failure.message}")
            except Exception as failure:
                # Nobody else would ask again.
                log.exception("asking for the orchestrator failed")
                self._readiness.set_not_ready(f"no orchestrator: {failure}")
            else:
                self._readiness.set_ready()
            await asyncio.sleep(_PROBE_SECONDS)

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
                f"cannot listen on {settings.host} port {settings.port}: "
                f"{error.strerror or error}; stop what uses it, or choose another --port "
                "(0: a free one)"
            ) from None
        host, port = runner.addresses[0][:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

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

    def _serve_metrics(self) -> str:
        settings = self._settings
        if settings.metrics_port < 0:
            return ""
        try:
            server, _ = prometheus_client.start_http_server(settings.metrics_port, settings.host)
        except OSError as error:
            raise StartError(
                f"cannot serve metrics on port {settings.metrics_port}: {error.strerror or error}; "
                "choose another --metrics-port (0: a free one)"
            ) from None
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        return f"{host}:{server.server_port}"

    def _write_ready_file(self, address: str, metrics_address: str) -> None:
        path = self._settings.ready_file
        if path is None:
            return
        report = {
            "name": NAME,
            "pid": os.getpid(),
            "address": address,
            "metrics_address": metrics_address,
        }
        # Whoever watches for the file must find all of it.
        unfinished: Path = path.with_name(f".{path.name}.{os.getpid()}")
        unfinished.write_text(json.dumps(report) + "\n")
        unfinished.replace(path)


def _is_local(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
