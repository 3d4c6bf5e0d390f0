"""What every process serves over HTTP: ``/metrics``, ``/livez`` and ``/readyz``."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING

import prometheus_client

from minmo.rpc.health import Readiness

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

LIVE_SECONDS = 2.0
"""Time in which the event loop of a process that lives does what it is asked."""


def serve(host: str, port: int, readiness: Readiness) -> int:
    """Serves in threads of its own, until the process ends; call it on the event loop.

    - ``/livez``: 200 while the event loop turns, else 503. It is not about what the process lacks:
      who is restarted because another is away only makes it worse.
    - ``/readyz``: 200, or 503 with the reason as text.
    - everything else: Prometheus' metrics.

    Args:
        host: address to listen on.
        port: 0 takes a free one.
        readiness: of the process.

    Returns:
        The port.

    Raises:
        OSError: the port cannot be had.
    """
    server, _ = prometheus_client.start_http_server(port, host)
    metrics = server.get_app()
    assert metrics is not None, "Prometheus' server has an application"
    server.set_app(_Probes(readiness, asyncio.get_running_loop(), metrics))
    return int(server.server_port)


class _Probes:
    """Answers probes; hands the rest on. Called in any thread."""

    def __init__(
        self, readiness: Readiness, loop: asyncio.AbstractEventLoop, rest: WSGIApplication
    ) -> None:
        self._readiness = readiness
        self._loop = loop
        self._rest = rest

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """The application; see PEP 3333."""
        match environ["PATH_INFO"]:
            case "/livez":
                problem = self._in_loop(lambda: "")
            case "/readyz":
                problem = self._in_loop(lambda: self._readiness.reason)
            case _:
                return self._rest(environ, start_response)
        status = HTTPStatus.SERVICE_UNAVAILABLE if problem else HTTPStatus.OK
        start_response(
            f"{status.value} {status.phrase}",
            [("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store")],
        )
        return [f"{problem or 'ok'}\n".encode()]

    def _in_loop(self, ask: Callable[[], str]) -> str:
        """What `ask` says on the event loop; or that this does not turn."""
        answer: concurrent.futures.Future[str] = concurrent.futures.Future()

        def work() -> None:
            answer.set_result(ask())

        try:
            self._loop.call_soon_threadsafe(work)
            return answer.result(LIVE_SECONDS)
        except TimeoutError:
            return f"the event loop has not turned for {LIVE_SECONDS:g} s"
        except RuntimeError:
            return "the event loop has ended"
