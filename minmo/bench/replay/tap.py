"""Stands between an orchestrator and the services with models, and writes down what passes."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from minmo.rpc import client

Direction = Literal["in", "out"]

SERVICES = {
    "minmo.v1.EncoderService": ("encoder", ("Encode",), ()),
    "minmo.v1.LlmService": ("llm", ("Run",), ("GetModel",)),
    "minmo.v1.VoiceDecoderService": ("voice_decoder", ("Decode",), ()),
}
"""Of each contract: who serves it, its streams, its unary methods."""


@dataclass(frozen=True)
class Message:
    """What passed: to the service (in) or from it (out), when, and what."""

    direction: Direction
    at: float
    data: bytes


@dataclass
class Tape:
    """One call, from its first to its last message."""

    method: str
    messages: list[Message] = field(default_factory=list)

    def add(self, direction: Direction, data: bytes) -> None:
        """Notes a message that passes now."""
        self.messages.append(Message(direction, time.monotonic(), data))


class Tap:
    """Passes calls on.

    Attributes:
        tapes: calls in the order in which they began; take them away to begin anew.
    """

    def __init__(self) -> None:
        self.tapes: list[Tape] = []

    @asynccontextmanager
    async def serving(self, targets: Mapping[str, str]) -> AsyncIterator[str]:
        """Serves all three services at one address, which it gives.

        Args:
            targets: where the real ones are, by name.
        """
        async with AsyncExitStack() as resources:
            server = grpc.aio.server()
            for contract, (name, streams, unary) in SERVICES.items():
                channel = await resources.enter_async_context(client.channel(targets[name]))
                handlers = {method: self._stream(channel, contract, method) for method in streams}
                handlers |= {method: self._unary(channel, contract, method) for method in unary}
                generic = grpc.method_handlers_generic_handler(contract, handlers)
                server.add_generic_rpc_handlers((generic,))
            serving = health.aio.HealthServicer()
            health_pb2_grpc.add_HealthServicer_to_server(serving, server)
            for contract in ("", *SERVICES):
                await serving.set(contract, health_pb2.HealthCheckResponse.SERVING)
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            resources.push_async_callback(server.stop, None)
            yield f"127.0.0.1:{port}"

    def _stream(self, channel: grpc.aio.Channel, contract: str, method: str) -> Any:
        forward: Any = channel.stream_stream(f"/{contract}/{method}")

        async def serve(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            tape = Tape(method)
            self.tapes.append(tape)

            async def passing() -> AsyncIterator[bytes]:
                async for request in requests:
                    tape.add("in", request)
                    yield request

            call = forward(passing(), metadata=_own_metadata(context))
            try:
                async for response in call:
                    tape.add("out", response)
                    yield response
            except grpc.aio.AioRpcError as failure:
                await context.abort(failure.code(), failure.details() or "")
            finally:
                call.cancel()

        return grpc.stream_stream_rpc_method_handler(serve)

    def _unary(self, channel: grpc.aio.Channel, contract: str, method: str) -> Any:
        forward: Any = channel.unary_unary(f"/{contract}/{method}")

        async def serve(request: bytes, context: Any) -> bytes:
            tape = Tape(method)
            self.tapes.append(tape)
            tape.add("in", request)
            response: bytes = await forward(request, metadata=_own_metadata(context), timeout=10)
            tape.add("out", response)
            return response

        return grpc.unary_unary_rpc_method_handler(serve)


def _own_metadata(context: Any) -> tuple[tuple[str, str], ...]:
    """What MinMo's callers send; the rest is of the connection."""
    pairs = context.invocation_metadata() or ()
    return tuple((key, value) for key, value in pairs if key.startswith("minmo-"))
