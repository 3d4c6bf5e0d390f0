"""What `minmo.rpc.client` does when servers refuse, die and come back."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest

from minmo.rpc import client
from minmo.rpc.client import call_metadata, channel

UNARY = client._unary_methods()[0]
UNARY_PATH = f"/{UNARY['service']}/{UNARY['method']}"
STREAM_PATH = "/minmo.v1.TestService/Stream"


@contextlib.asynccontextmanager
async def server(answer: Callable[[], Any], port: int = 0) -> AsyncIterator[int]:
    """A server whose every call gives `answer()` or what that raises; its port."""

    async def unary(request: bytes, context: Any) -> Any:
        return await respond(context)

    async def stream(requests: AsyncIterator[bytes], context: Any) -> None:
        await context.write(await respond(context))

    async def respond(context: Any) -> Any:
        response = answer()
        if isinstance(response, grpc.StatusCode):
            await context.abort(response, "not now")
        return response

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> Any:
            if details.method == STREAM_PATH:
                return grpc.stream_stream_rpc_method_handler(stream)  # type: ignore[arg-type]
            return grpc.unary_unary_rpc_method_handler(unary)  # type: ignore[arg-type]

    made = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    made.add_generic_rpc_handlers([Handler()])
    bound = made.add_insecure_port(f"127.0.0.1:{port}")
    await made.start()
    try:
        yield bound
    finally:
        await made.stop(0)


def failing(times: int, code: grpc.StatusCode, calls: Counter[str]) -> Callable[[], Any]:
    def answer() -> Any:
        calls["all"] += 1
        return code if calls["all"] <= times else b"done"

    return answer


async def test_a_unary_call_that_no_server_took_is_repeated() -> None:
    calls: Counter[str] = Counter()
    async with (
        server(failing(2, grpc.StatusCode.UNAVAILABLE, calls)) as port,
        channel(f"127.0.0.1:{port}") as connection,
    ):
        assert await connection.unary_unary(UNARY_PATH)(b"", timeout=5) == b"done"
    assert calls["all"] == 3


async def test_other_failures_are_not_repeated() -> None:
    calls: Counter[str] = Counter()
    async with (
        server(failing(1, grpc.StatusCode.RESOURCE_EXHAUSTED, calls)) as port,
        channel(f"127.0.0.1:{port}") as connection,
    ):
        with pytest.raises(grpc.aio.AioRpcError):
            await connection.unary_unary(UNARY_PATH)(b"", timeout=5)
    assert calls["all"] == 1


async def test_a_stream_is_never_repeated() -> None:
    calls: Counter[str] = Counter()
    async with (
        server(failing(1, grpc.StatusCode.UNAVAILABLE, calls)) as port,
        channel(f"127.0.0.1:{port}") as connection,
    ):
        call: Any = connection.stream_stream(STREAM_PATH)(timeout=5)
        with pytest.raises(grpc.aio.AioRpcError):
            await call.read()
    assert calls["all"] == 1


def test_the_contracts_streams_are_not_among_what_is_repeated() -> None:
    from minmo.v1 import conversation_pb2

    retried = {(entry["service"], entry["method"]) for entry in client._unary_methods()}
    for service in conversation_pb2.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            streaming = method.client_streaming or method.server_streaming
            assert ((service.full_name, method.name) in retried) is not streaming


async def test_calls_are_spread_over_all_replicas() -> None:
    calls: Counter[str] = Counter()

    def counting(name: str) -> Callable[[], bytes]:
        return lambda: calls.update([name]) or name.encode()

    async with (
        server(counting("first")) as first,
        server(counting("second")) as second,
        channel(f"ipv4:127.0.0.1:{first},127.0.0.1:{second}") as connection,
    ):
        ask = connection.unary_unary(UNARY_PATH)
        async with asyncio.timeout(5):  # until both are connected
            while len(calls) < 2:
                await ask(b"", timeout=5)
        calls.clear()
        for _ in range(10):
            await ask(b"", timeout=5)
    assert calls == {"first": 5, "second": 5}


async def test_a_server_that_is_back_is_found_again_within_seconds() -> None:
    async with server(lambda: b"before") as port, channel(f"127.0.0.1:{port}") as connection:
        ask = connection.unary_unary("/minmo.test.NotRetried/Ask")
        assert await ask(b"", timeout=5) == b"before"
    async with channel(f"127.0.0.1:{port}") as connection:
        ask = connection.unary_unary("/minmo.test.NotRetried/Ask")
        gone_until = time.monotonic() + 1
        while time.monotonic() < gone_until:
            with pytest.raises(grpc.aio.AioRpcError):
                await ask(b"", timeout=5)
        async with server(lambda: b"after", port):
            back = time.monotonic()
            assert await ask(b"", timeout=5, wait_for_ready=True) == b"after"
            assert time.monotonic() - back < 2.5


def test_metadata_names_session_and_turn_and_nothing_that_is_not_there() -> None:
    assert call_metadata("s-1", 3) == (("minmo-session", "s-1"), ("minmo-turn", "3"))
    assert call_metadata("s-1") == (("minmo-session", "s-1"),)
    with pytest.raises(ValueError, match="minmo-session is 'é': metadata holds printable ASCII"):
        call_metadata("é")
