"""What is served over HTTP: the page, the protocol's WebSocket, health."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from http import HTTPStatus
from urllib.parse import urlsplit

import grpc
import structlog
from aiohttp import web
from multidict import MultiMapping

from minmo.rpc import metrics
from minmo.rpc.health import Readiness
from minmo.rpc.tracing import TRACEPARENT_KEY
from minmo.settings import GatewaySettings
from services.gateway.auth import SUBPROTOCOL, Caller, CredentialsError, Gatekeeper, credential_of
from services.gateway.connection import Connection, Wish
from services.gateway.limits import Quotas, TooManyConnectionsError
from services.gateway.page_files import HEADERS, Page
from services.gateway.upstream import Upstream

log = structlog.get_logger()

REALTIME_PATH = "/v1/realtime"
_CLOSE_SECONDS = 1.0
_MAX_QUERY_CHARACTERS = 200
_END_SECONDS = 3.0


class Server:
    """The routes, and the connections that are open.

    Args:
        settings: of the gateway.
        channel: to the orchestrator.
        readiness: says whether connections are taken.
        gatekeeper: says who may connect.
        page: the page.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        channel: grpc.aio.Channel,
        readiness: Readiness,
        gatekeeper: Gatekeeper,
        page: Page,
    ) -> None:
        self._settings = settings
        self._channel = channel
        self._readiness = readiness
        self._gatekeeper = gatekeeper
        self._page = page
        self._origins = {
            origin.strip().rstrip("/").lower()
            for origin in settings.allowed_origins.split(",")
            if origin.strip()
        }
        self._quotas = Quotas(settings.max_sessions_per_key, settings.audio_seconds_per_hour)
        self._open: dict[Connection, asyncio.Task[object] | None] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        metrics.STREAMS_LIMIT.set(settings.max_streams)

    def application(self) -> web.Application:
        """For aiohttp."""
        application = web.Application(client_max_size=64 * 1024)
        application.router.add_get(REALTIME_PATH, self._realtime)
        application.router.add_get("/healthz", self._healthz)
        application.router.add_get("/readyz", self._readyz)
        application.router.add_get("/{name:.*}", self._page.serve)
        return application

    # --- the end

    @property
    def connections(self) -> int:
        """Connections that are open."""
        return len(self._open)

    async def drain(self, seconds: float) -> None:
        """Ends connections when they pause, and all after `seconds`."""
        for connection in self._open:
            connection.drain()
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            log.warning("ending the connections that still talk", running=self.connections)
        tasks = [task for task in self._open.values() if task is not None]
        for connection in list(self._open):
            connection.cut()
        if tasks:
            await asyncio.wait(tasks, timeout=_END_SECONDS)

    # --- routes

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n", headers=HEADERS)

    async def _readyz(self, _: web.Request) -> web.Response:
        reason = self._readiness.reason
        status = HTTPStatus.SERVICE_UNAVAILABLE if reason else HTTPStatus.OK
        return web.Response(status=status, text=f"{reason or 'ready'}\n", headers=HEADERS)

    async def _realtime(self, request: web.Request) -> web.StreamResponse:
        try:
            caller, wish = self._admit(request)
            with self._quotas.connection(caller.name, time.monotonic()) as audio:
                socket = web.WebSocketResponse(
                    protocols=(SUBPROTOCOL,),
                    max_msg_size=2 * self._settings.max_message_bytes,
                    heartbeat=self._settings.keepalive_seconds,
                    timeout=_CLOSE_SECONDS,
                    compress=False,
                    # The connection measures what its pings take.
                    autoping=False,
                )
                try:
                    await socket.prepare(request)
                except ConnectionError:
                    metrics.CONNECTED.labels("client_gone").inc()
                    return socket
                metrics.CONNECTED.labels("accepted").inc()
                upstream = Upstream(
                    self._channel,
                    caller.token,
                    self._settings.connect_deadline_seconds,
                    request.headers.get(TRACEPARENT_KEY, ""),
                )
                connection = Connection(self._settings, socket, upstream, wish, audio)
                await self._serve(connection, caller, request)
                if request.transport is not None:
                    request.transport.abort()
        except TooManyConnectionsError:
            raise self._refusal(
                HTTPStatus.TOO_MANY_REQUESTS,
                "rate_limit_exceeded",
                f"You have {self._settings.max_sessions_per_key} connections open, the limit: "
                "close one.",
            ) from None
        return socket

    async def _serve(self, connection: Connection, caller: Caller, request: web.Request) -> None:
        structlog.contextvars.bind_contextvars(caller=caller.name, peer=request.remote)
        log.info("connected", model=request.query.get("model", "")[:_MAX_QUERY_CHARACTERS])
        self._open[connection] = asyncio.current_task()
        self._idle.clear()
        metrics.CONNECTIONS.inc()
        metrics.STREAMS.inc()
        reason = "failed"
        began = time.monotonic()
        try:
            if self._readiness.draining:
                connection.drain()
            reason = await connection.run()
        except Exception:
            log.exception("a connection failed")
        finally:
            del self._open[connection]
            if not self._open:
                self._idle.set()
            metrics.CONNECTIONS.dec()
            metrics.STREAMS.dec()
            metrics.CLOSED.labels(reason).inc()
            log.info("closed", reason=reason, seconds=round(time.monotonic() - began, 1))

    # --- who may

    def _admit(self, request: web.Request) -> tuple[Caller, Wish]:
        self._check_origin(request)
        try:
            caller = self._gatekeeper.admit(
                credential_of(request.headers), request.remote or "unknown"
            )
        except CredentialsError as error:
            raise self._refusal(HTTPStatus.UNAUTHORIZED, "invalid_api_key", str(error)) from None
        if self._readiness.draining or not self._readiness.started:
            raise self._refusal(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "server_unavailable",
                f"The server takes no connections now: {self._readiness.reason}.",
            )
        if self.connections >= self._settings.max_streams:
            raise self._refusal(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "server_overloaded",
                f"The server has {self._settings.max_streams} connections open, its limit: try "
                "again later.",
            )
        # Last: a page cannot see why a WebSocket is refused, and asks again without one.
        if request.headers.get("Upgrade", "").lower() != "websocket":
            raise self._refusal(
                HTTPStatus.UPGRADE_REQUIRED,
                "websocket_required",
                "This is a WebSocket: connect with a client of the Realtime protocol.",
            )
        return caller, _wish(request.query)

    def _check_origin(self, request: web.Request) -> None:
        """Browsers say whose page connects; other clients do not."""
        origin = request.headers.get("Origin")
        if origin is None or "*" in self._origins or origin.lower() in self._origins:
            return
        if urlsplit(origin).netloc.lower() == request.host.lower():
            return
        raise self._refusal(
            HTTPStatus.FORBIDDEN,
            "origin_not_allowed",
            "Pages of this origin may not connect: name it in --allowed-origins.",
        )

    def _refusal(self, status: HTTPStatus, code: str, message: str) -> web.HTTPException:
        metrics.CONNECTED.labels(code).inc()
        error = {
            "error": {
                "type": "invalid_request_error",
                "code": code,
                "message": message,
                "param": None,
            }
        }
        headers = dict(HEADERS)
        if status is HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Bearer"
        elif status is HTTPStatus.UPGRADE_REQUIRED:
            headers["Upgrade"] = "websocket"
        elif status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS):
            headers["Retry-After"] = "1"
        return _Refusal(status, error, headers)


class _Refusal(web.HTTPException):
    def __init__(
        self, status: HTTPStatus, body: Mapping[str, object], headers: Mapping[str, str]
    ) -> None:
        self.status_code = status.value
        response = web.json_response(body)
        super().__init__(headers=headers, text=response.text, content_type="application/json")


def _wish(query: MultiMapping[str]) -> Wish:
    return Wish(
        model=query.get("model", "")[:_MAX_QUERY_CHARACTERS],
        session_id=query.get("session_id", "")[:_MAX_QUERY_CHARACTERS],
        minmo=query.get("minmo", "").lower() in ("1", "true", "yes"),
    )
