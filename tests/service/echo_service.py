"""A minimal service on `minmo.rpc`, run as a process by the tests of the server.

Its methods take and give raw bytes, so that it needs no contract of its own.
"""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import structlog
from pydantic import Field

from minmo.rpc.errors import invalid_argument
from minmo.rpc.health import Readiness
from minmo.rpc.server import serve
from minmo.settings import ServiceSettings

SERVICE = "minmo.test.EchoService"
log = structlog.get_logger(__name__)


class EchoSettings(ServiceSettings):
    hold: bool = Field(False, description="start only when SIGUSR1 comes")
    fail: bool = Field(False, description="fail to start")


class EchoService:
    name = "echo"

    def __init__(self, settings: EchoSettings) -> None:
        self.readiness = Readiness()
        self._settings = settings

    async def start(self) -> None:
        if self._settings.fail:
            raise FileNotFoundError("no weights in /nowhere")
        if self._settings.hold:
            let_go = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, let_go.set)
            log.info("held")
            await let_go.wait()

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        handlers: dict[str, Any] = {
            "Echo": unary(self.echo),
            "Refuse": unary(self.refuse),
            "Fail": unary(self.fail),
            "Lose": unary(self.lose),
            "Find": unary(self.find),
            "Blocking": unary(lambda request, context: request),
            "Block": unary(self.block),
            "Chat": stream(self.chat),
            "Hang": stream(self.hang),
        }
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
        return [SERVICE]

    async def stop(self) -> None:
        log.info("echo stopped")

    async def echo(self, request: bytes, context: Any) -> bytes:
        log.info("echoing")
        return request

    async def refuse(self, request: bytes, context: Any) -> bytes:
        raise invalid_argument("text", request.decode(), limit="2000 characters")

    async def fail(self, request: bytes, context: Any) -> bytes:
        raise RuntimeError("the database password is hunter2")

    async def lose(self, request: bytes, context: Any) -> bytes:
        self.readiness.set_not_ready("Triton does not answer", "triton")
        return b""

    async def find(self, request: bytes, context: Any) -> bytes:
        self.readiness.set_ready()
        return b""

    async def block(self, request: bytes, context: Any) -> bytes:
        log.info("blocking")
        time.sleep(float(request))  # noqa: ASYNC251 - the fault that is tested
        return b""

    async def chat(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request

    async def hang(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        try:
            yield b"hanging"
            await asyncio.Event().wait()
        finally:
            log.info("hang ended")


if __name__ == "__main__":
    serve(EchoSettings.load("echo"), EchoService)
