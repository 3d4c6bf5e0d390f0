"""What `minmo.rpc.client` does when servers refuse, die and come back."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc

from minmo.rpc import client
from minmo.rpc.client import call_metadata, channel, wait_ready
from minmo.rpc.errors import StatusError
from minmo.rpc.health import HealthServicer, Readiness
from minmo.rpc.load import add_load_reports
from tests.names import Names

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
            if not details.method.startswith("/minmo."):
                return None
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


@dataclass
class Replica:
    """One of several servers; answers each call with its name."""

    name: str
    host: str = "127.0.0.1"
    port: int = 0
    connection_ms: int = 60_000
    load: float = 0.1
    readiness: Readiness = field(default_factory=Readiness)

    @contextlib.asynccontextmanager
    async def served(self) -> AsyncIterator["Replica"]:
        async def unary(request: bytes, context: Any) -> bytes:
            return self.name.encode()

        async def stream(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            async for _ in requests:
                yield self.name.encode()

        handlers = {
            "Ask": grpc.unary_unary_rpc_method_handler(unary),  # type: ignore[arg-type]
            "Stream": grpc.stream_stream_rpc_method_handler(stream),  # type: ignore[arg-type]
        }
        server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_connection_age_ms", self.connection_ms),
            ]
        )
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("minmo.test.Replica", handlers)]
        )
        health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(self.readiness, []), server)
        add_load_reports(server, lambda: self.load, self.readiness)
        self.port = server.add_insecure_port(f"{self.host}:{self.port}")
        await server.start()
        self.readiness.mark_started()
        try:
            yield self
        finally:
            self.readiness.mark_stopping()
            await server.stop(0)


@contextlib.asynccontextmanager
async def three_replicas() -> AsyncIterator[list[Replica]]:
    async with contextlib.AsyncExitStack() as servers:
        replicas = [Replica(name) for name in "abc"]
        for replica in replicas:
            await servers.enter_async_context(replica.served())
        yield replicas


def target_of(replicas: list[Replica]) -> str:
    return "ipv4:" + ",".join(f"{replica.host}:{replica.port}" for replica in replicas)


async def asked(connection: grpc.aio.Channel, times: int, session: str = "") -> Counter[str]:
    """Who answers calls of a session, or of a session each."""
    ask = connection.unary_unary("/minmo.test.Replica/Ask")
    names: Counter[str] = Counter()
    for number in range(times):
        metadata = call_metadata(session or f"session-{number}")
        names[(await ask(b"", timeout=5, wait_for_ready=True, metadata=metadata)).decode()] += 1
    return names


async def until(
    connection: grpc.aio.Channel, holds: Callable[[Counter[str]], bool], seconds: float = 5
) -> float:
    """Calls until what thirty calls say holds; how long that took."""
    began = time.monotonic()
    async with asyncio.timeout(seconds):
        while not holds(await asked(connection, 30)):
            await asyncio.sleep(0.01)
    return time.monotonic() - began


POLICIES = pytest.mark.parametrize("balancing", ["in_turn", "by_load", "by_session"])


@POLICIES
async def test_a_replica_that_is_not_ready_gets_no_calls_until_it_is(
    balancing: client.Balancing,
) -> None:
    async with (
        three_replicas() as replicas,
        channel(target_of(replicas), balancing=balancing) as connection,
    ):
        await until(connection, lambda names: len(names) == 3)
        replicas[0].readiness.set_not_ready("Triton does not answer", "triton")
        assert await until(connection, lambda names: "a" not in names) < 0.5
        assert set(await asked(connection, 60)) == {"b", "c"}
        replicas[0].readiness.set_ready()
        assert await until(connection, lambda names: "a" in names) < 0.5


@POLICIES
async def test_a_replica_that_drains_gets_no_new_calls_and_keeps_its_streams(
    balancing: client.Balancing,
) -> None:
    async with (
        three_replicas() as replicas,
        channel(target_of(replicas), balancing=balancing) as connection,
    ):
        await until(connection, lambda names: len(names) == 3)
        calls: list[Any] = []
        while not calls or await said_by(calls[-1]) != "a":
            metadata = call_metadata(f"session-{len(calls)}")
            calls.append(connection.stream_stream("/minmo.test.Replica/Stream")(metadata=metadata))
        replicas[0].readiness.mark_draining()
        await until(connection, lambda names: "a" not in names)
        assert await said_by(calls[-1]) == "a"


@POLICIES
async def test_a_replica_that_dies_is_left_at_once_and_found_again(
    balancing: client.Balancing,
) -> None:
    async with contextlib.AsyncExitStack() as servers:
        first, second = Replica("first"), Replica("second")
        await servers.enter_async_context(first.served())
        dying = contextlib.AsyncExitStack()
        await dying.enter_async_context(second.served())
        target = target_of([first, second])
        connection = await servers.enter_async_context(channel(target, balancing=balancing))
        await until(connection, lambda names: len(names) == 2)
        await dying.aclose()
        assert set(await asked(connection, 30)) == {"first"}
        again = Replica("second", port=second.port)
        await servers.enter_async_context(again.served())
        assert await until(connection, lambda names: len(names) == 2) < 3


async def test_more_calls_go_to_who_has_less_to_do() -> None:
    async with three_replicas() as replicas:
        replicas[0].load = 0.9
        async with channel(target_of(replicas), balancing="by_load") as connection:
            await until(connection, lambda names: len(names) == 3 and names["a"] <= 3)
            replicas[0].load, replicas[1].load = 0.1, 0.9
            await until(connection, lambda names: names["b"] <= 3 and names["a"] >= 10)


async def test_a_session_has_one_replica_whoever_calls() -> None:
    async with (
        three_replicas() as replicas,
        channel(target_of(replicas), balancing="by_session") as one,
        channel(target_of(replicas[::-1]), balancing="by_session") as other,
    ):
        homes = [set(await asked(one, 5, f"session-{n}")) for n in range(40)]
        assert all(len(home) == 1 for home in homes)
        assert len(set.union(*homes)) == 3
        assert [set(await asked(other, 5, f"session-{n}")) for n in range(40)] == homes
        replicas[1].readiness.mark_draining()
        await until(one, lambda names: "b" not in names)
        # Only the sessions of the one that drains move.
        for number, home in enumerate(homes):
            moved = set(await asked(one, 5, f"session-{number}"))
            assert moved == home if home != {"b"} else len(moved) == 1


@POLICIES
async def test_new_replicas_are_found_by_name_and_those_that_left_it_keep_their_streams(
    balancing: client.Balancing,
) -> None:
    async with Names.served() as names, contextlib.AsyncExitStack() as servers:
        old = Replica("old", "127.0.0.2", connection_ms=500)
        await servers.enter_async_context(old.served())
        names.addresses["replicas.test"] = [old.host]
        target = names.target("replicas.test", old.port)
        connection = await servers.enter_async_context(channel(target, balancing=balancing))
        stream = connection.stream_stream("/minmo.test.Replica/Stream")()
        assert await said_by(stream) == "old"
        new = Replica("new", "127.0.0.3", old.port, connection_ms=500)
        await servers.enter_async_context(new.served())
        names.addresses["replicas.test"] = [old.host, new.host]
        await until(connection, lambda found: len(found) == 2)
        names.addresses["replicas.test"] = [new.host]
        await until(connection, lambda found: set(found) == {"new"})
        assert await said_by(stream) == "old"


async def test_a_name_that_does_not_resolve_yet_is_resolved_again() -> None:
    async with (
        Names.served() as names,
        Replica("late", "127.0.0.2").served() as late,
        channel(names.target("late.test", late.port)) as connection,
    ):
        waiting = asyncio.create_task(asked(connection, 1))
        async with asyncio.timeout(5):
            while not names.queries:
                await asyncio.sleep(0.01)
        names.addresses["late.test"] = [late.host]
        async with asyncio.timeout(5):
            assert set(await waiting) == {"late"}


async def test_who_waits_for_a_server_learns_what_it_lacks() -> None:
    async with Replica("lacking").served() as replica:
        replica.readiness.set_not_ready("Redis refuses the password", "redis")
        with pytest.raises(StatusError, match=r"not ready after.*: Redis refuses the password"):
            await wait_ready(f"127.0.0.1:{replica.port}", deadline_seconds=0.3)
        replica.readiness.set_ready("redis")
        await wait_ready(f"127.0.0.1:{replica.port}", deadline_seconds=5)


async def said_by(call: Any) -> str:
    await call.write(b"")
    async with asyncio.timeout(5):
        return str((await call.read()).decode())


def test_metadata_names_session_and_turn_and_nothing_that_is_not_there() -> None:
    assert call_metadata("s-1", 3) == (("minmo-session", "s-1"), ("minmo-turn", "3"))
    assert call_metadata("s-1") == (("minmo-session", "s-1"),)
    with pytest.raises(ValueError, match="minmo-session is 'é': metadata holds printable ASCII"):
        call_metadata("é")
