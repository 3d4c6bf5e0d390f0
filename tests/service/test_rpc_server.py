"""A real process on `minmo.rpc.server`, seen by its clients."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from minmo.rpc.client import call_metadata, channel, wait_ready
from minmo.rpc.errors import StatusError, describe, parse

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("echo_service.py")
SERVICE = "minmo.test.EchoService"
TOKEN = "open-sesame"
DEADLINE_SECONDS = 15.0
LOAD_SERVICE = "xds.service.orca.v3.OpenRcaService"
# Two doubles, each behind its tag.
LOAD_REPORT = struct.Struct("<BdBd")
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Process:
    """An echo service, its addresses and its log."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self._ready_file = folder / "ready.json"
        self._log_file = folder / "log"
        environment = {name: value for name, value in os.environ.items() if "MINMO_" not in name}
        with self._log_file.open("wb") as log:
            self.popen = subprocess.Popen(
                [sys.executable, PROGRAM, "--ready-file", self._ready_file, *flags],
                env={**environment, "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=log,
            )

    def ready(self) -> "Process":
        """Waits until the process is ready."""
        self._until(self._ready_file.exists, "ready")
        report = json.loads(self._ready_file.read_text())
        assert (report["name"], report["pid"]) == ("echo", self.popen.pid)
        self.address: str = report["address"]
        self.metrics_address: str = report["metrics_address"]
        return self

    def logged(self, event: str) -> dict[str, Any]:
        """Waits until the event is in the log."""
        self._until(lambda: bool(self._records(event)), event)
        return self._records(event)[-1]

    def ended(self) -> int:
        """Waits for the end; the exit status."""
        return self.popen.wait(DEADLINE_SECONDS)

    def log(self) -> str:
        return self._log_file.read_text()

    def terminate(self) -> None:
        self.popen.send_signal(signal.SIGTERM)

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://{self.metrics_address}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    def metric(self, sample: str) -> float:
        match = re.search(rf"^{re.escape(sample)} (\S+)$", self.metrics(), re.MULTILINE)
        return float(match[1]) if match else 0.0

    @property
    def ready_file_exists(self) -> bool:
        return self._ready_file.exists()

    def _records(self, event: str) -> list[dict[str, Any]]:
        lines = self.log().splitlines()
        records = [json.loads(line) for line in lines if line.startswith("{") and line[-1] == "}"]
        return [record for record in records if record["event"] == event]

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            if time.monotonic() > deadline or self.popen.poll() is not None:
                raise AssertionError(f"no {what!r}; the process says:\n{self.log()}")
            time.sleep(0.01)


Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts processes, which end with the test."""
    with contextlib.ExitStack() as stack:

        def run(*flags: str) -> Process:
            process = Process(tmp_path, *flags)
            stack.callback(_end, process)
            return process

        yield run


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """One process that asks for a token and has low limits, shared by the tests."""
    flags = ["--token", TOKEN, "--max-streams", "2", "--max-message-bytes", "65536"]
    process = Process(tmp_path_factory.mktemp("echo"), *flags, "--keepalive-seconds", "0.5")
    try:
        yield process.ready()
    finally:
        _end(process)


@pytest.fixture
async def connection(echo: Process) -> AsyncIterator[grpc.aio.Channel]:
    async with reaching(echo.address, token=TOKEN, max_message_bytes=10**6) as open_channel:
        yield open_channel


def reaching(address: str, **options: Any) -> grpc.aio.Channel:
    """A channel that calls a server also while that says that it is not ready."""
    return channel(address, only_healthy=False, **options)


def over_http(process: Process, path: str) -> tuple[int, str]:
    """Status and text that the metrics port answers."""
    try:
        with urllib.request.urlopen(f"http://{process.metrics_address}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode().strip()
    except urllib.error.HTTPError as refusal:
        return refusal.code, refusal.read().decode().strip()


def _end(process: Process) -> None:
    process.popen.kill()
    process.popen.wait()


async def call(connection: grpc.aio.Channel, method: str, request: bytes = b"", **more: Any) -> Any:
    return await connection.unary_unary(f"/{SERVICE}/{method}")(request, timeout=5, **more)


def stream(connection: grpc.aio.Channel, method: str, timeout: float = 10) -> Any:
    return connection.stream_stream(f"/{SERVICE}/{method}")(timeout=timeout)


async def health(connection: grpc.aio.Channel, service: str = "") -> Any:
    request = health_pb2.HealthCheckRequest(service=service)
    stub: Any = health_pb2_grpc.HealthStub(connection)
    return (await stub.Check(request, timeout=5)).status


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.02)


# --- what every service offers


async def test_health_answers_for_the_process_and_each_service_without_a_token(
    echo: Process,
) -> None:
    async with channel(echo.address) as connection:
        assert await health(connection) == SERVING
        assert await health(connection, SERVICE) == SERVING
        with pytest.raises(grpc.aio.AioRpcError, match=f"there are: {re.escape(SERVICE)}"):
            await health(connection, "minmo.v1.Nothing")


async def test_reflection_lists_the_services_without_a_token(echo: Process) -> None:
    async with channel(echo.address) as connection:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(connection)
        requests = [reflection_pb2.ServerReflectionRequest(list_services="")]
        async for answer in stub.ServerReflectionInfo(iter(requests), timeout=5):
            names = {service.name for service in answer.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names


async def test_metrics_count_calls_by_method_and_code(
    echo: Process, connection: grpc.aio.Channel
) -> None:
    ok = f'minmo_rpc_handled_total{{code="OK",method="/{SERVICE}/Echo"}}'
    before = echo.metric(ok)
    await call(connection, "Echo")
    await eventually(lambda: echo.metric(ok) == before + 1)
    assert echo.metric(f'minmo_rpc_in_flight{{method="/{SERVICE}/Echo"}}') == 0
    assert echo.metric("minmo_ready") == 1
    assert echo.metric("minmo_streams_limit") == 2
    assert 'service="echo"' in echo.metrics()


async def test_a_services_own_trouble_shows_in_health_with_its_reason(
    echo: Process, connection: grpc.aio.Channel
) -> None:
    stub: Any = health_pb2_grpc.HealthStub(connection)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=10)
    other = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=10)
    assert (await watch.read()).status == (await other.read()).status == SERVING
    other.cancel()
    await call(connection, "Lose")
    assert (await watch.read()).status == NOT_SERVING
    assert over_http(echo, "/readyz") == (503, "Triton does not answer")
    assert over_http(echo, "/livez") == (200, "ok")
    assert (await asyncio.to_thread(echo.logged, "not ready"))["reason"] == "Triton does not answer"
    assert echo.metric('minmo_not_ready{reason="triton"}') == 1
    with pytest.raises(StatusError, match=r"after 0\.2 s: Triton does not answer"):
        await wait_ready(echo.address, deadline_seconds=0.2)
    assert await call(connection, "Echo", b"still here") == b"still here"
    await call(connection, "Find")
    assert (await watch.read()).status == SERVING
    await wait_ready(echo.address, SERVICE, deadline_seconds=5)
    assert over_http(echo, "/readyz") == (200, "ok")
    assert (await asyncio.to_thread(echo.logged, "ready again"))[
        "lacked"
    ] == "Triton does not answer"
    watch.cancel()


async def test_a_process_whose_event_loop_is_stuck_does_not_live(start: Start) -> None:
    process = start().ready()
    assert over_http(process, "/livez") == (200, "ok")
    async with channel(process.address) as connection:
        blocking = asyncio.ensure_future(call(connection, "Block", b"2.5"))
        await asyncio.to_thread(process.logged, "blocking")
        assert over_http(process, "/livez") == (503, "the event loop has not turned for 2 s")
        await blocking
        assert over_http(process, "/livez") == (200, "ok")


async def test_a_connection_ends_when_it_is_old_and_its_streams_do_not(start: Start) -> None:
    process = start("--max-connection-seconds", "0.3").ready()
    async with channel(process.address) as connection:
        chat = stream(connection, "Chat")
        await chat.write(b"early")
        assert await chat.read() == b"early"
        peers = set()
        async with asyncio.timeout(DEADLINE_SECONDS):
            while len(peers) < 3:
                await call(connection, "Echo")
                peers.add(process.logged("echoing")["peer"])
        await chat.write(b"late")
        assert await chat.read() == b"late"


async def test_a_server_says_how_much_it_has_to_do(start: Start) -> None:
    process = start("--max-streams", "9").ready()
    async with channel(process.address) as connection:
        path = f"/{LOAD_SERVICE}/StreamCoreMetrics"
        reports: Any = connection.unary_stream(path)(b"", timeout=10)
        assert LOAD_REPORT.unpack(await reports.read())[3] == pytest.approx(0.1)
        hanging = [stream(connection, "Hang") for _ in range(3)]
        for hang in hanging:
            assert await hang.read() == b"hanging"
        async with asyncio.timeout(5):
            while LOAD_REPORT.unpack(await reports.read())[3] != pytest.approx(0.4):
                pass


async def test_log_lines_of_a_call_carry_its_session_and_turn(
    echo: Process, connection: grpc.aio.Channel
) -> None:
    await call(connection, "Echo", metadata=call_metadata("s-42", 7))
    await eventually(lambda: echo.logged("echoing").get("session") == "s-42")
    line = echo.logged("echoing")
    assert (line["turn"], line["method"], line["service"]) == ("7", f"/{SERVICE}/Echo", "echo")
    assert line["peer"].startswith("ipv4:127.0.0.1:")


# --- who may call


@pytest.mark.parametrize(
    ("token", "reason"), [(None, "TOKEN_MISSING"), ("open-sesam", "TOKEN_BAD"), ("", "TOKEN_BAD")]
)
async def test_a_call_without_the_token_is_unauthenticated(
    echo: Process, token: str | None, reason: str
) -> None:
    async with channel(echo.address, token=token) as connection:
        with pytest.raises(grpc.aio.AioRpcError) as unary:
            await call(connection, "Echo")
        with pytest.raises(grpc.aio.AioRpcError) as streaming:
            await stream(connection, "Chat").read()
    for error in (unary.value, streaming.value):
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        assert parse(error).reason == reason
        assert TOKEN not in describe(error)
    assert TOKEN not in echo.log()


async def test_any_of_several_tokens_lets_a_caller_in(start: Start) -> None:
    process = start("--token", "one,two").ready()
    for token in ("one", "two"):
        async with channel(process.address, token=token) as connection:
            assert await call(connection, "Echo") is not None
    for token in ("one,two", ""):
        async with channel(process.address, token=token) as connection:
            with pytest.raises(grpc.aio.AioRpcError, match="not one of this server"):
                await call(connection, "Echo")


async def test_streams_work_with_a_token_in_both_styles(connection: grpc.aio.Channel) -> None:
    chat = stream(connection, "Chat")
    for word in (b"one", b"two"):
        await chat.write(word)
        assert await chat.read() == word
    await chat.done_writing()
    assert await chat.read() is grpc.aio.EOF

    async def words() -> AsyncIterator[bytes]:
        yield b"three"
        yield b"four"

    multi: Any = connection.stream_stream(f"/{SERVICE}/Chat")
    assert [answer async for answer in multi(words(), timeout=5)] == [b"three", b"four"]


# --- errors


async def test_a_handlers_error_arrives_with_field_and_limit(connection: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call(connection, "Refuse", "zu läng ☃".encode())
    assert error.value.details() == "text: zu läng ☃"
    assert parse(error.value).violations == {"text": "zu läng ☃"}
    assert parse(error.value).metadata["limit"] == "2000 characters"


async def test_the_longest_error_still_arrives(connection: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call(connection, "Refuse", "🙂".encode() * 10_000)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert parse(error.value).reason == "INVALID_ARGUMENT"


async def test_an_unexpected_exception_leaks_nothing_but_its_id_in_the_log(
    echo: Process, connection: grpc.aio.Channel
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call(connection, "Fail")
    assert error.value.code() is grpc.StatusCode.INTERNAL
    assert "hunter2" not in repr(error.value)
    error_id = parse(error.value).metadata["error_id"]
    assert error_id in str(error.value.details())
    record = echo.logged("handler failed")
    assert record["error_id"] == error_id
    assert "hunter2" in record["exception"]
    assert await call(connection, "Echo", b"alive") == b"alive"


async def test_a_blocking_handler_is_a_fault_of_the_service(connection: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call(connection, "Blocking")
    assert error.value.code() is grpc.StatusCode.INTERNAL


async def test_an_unknown_method_is_unimplemented(connection: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call(connection, "Nothing")
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


# --- limits


async def test_a_message_over_the_limit_is_refused_and_the_service_goes_on(
    connection: grpc.aio.Channel,
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as unary:
        await call(connection, "Echo", b"x" * 70_000)
    chat = stream(connection, "Chat")
    await chat.write(b"x" * 70_000)
    with pytest.raises(grpc.aio.AioRpcError) as streaming:
        await chat.read()
    for error in (unary.value, streaming.value):
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger than max (70000 vs. 65536)" in str(error.details())
    assert await call(connection, "Echo", b"x" * 60_000) == b"x" * 60_000


async def test_one_stream_too_many_is_refused_by_name_and_room_comes_back(
    echo: Process, connection: grpc.aio.Channel
) -> None:
    first, second = stream(connection, "Hang"), stream(connection, "Hang")
    assert await first.read() == await second.read() == b"hanging"
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await stream(connection, "Hang").read()
    status = parse(error.value)
    assert status.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (status.reason, status.metadata["limit"]) == ("TOO_MANY_STREAMS", "2 streams")
    assert status.retry_after_seconds == 1
    assert await call(connection, "Echo", b"unary") == b"unary"
    first.cancel()
    second.cancel()
    await eventually(lambda: echo.metric("minmo_streams") == 0)
    assert await stream(connection, "Hang").read() == b"hanging"
    cancelled = f'minmo_rpc_handled_total{{code="CANCELLED",method="/{SERVICE}/Hang"}}'
    assert echo.metric(cancelled) >= 2


async def test_a_deadline_ends_the_handler(echo: Process, connection: grpc.aio.Channel) -> None:
    hang = stream(connection, "Hang", timeout=0.2)
    assert await hang.read() == b"hanging"
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await hang.read()
    assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await eventually(lambda: echo.metric("minmo_streams") == 0)


async def test_a_client_that_vanishes_without_a_word_is_noticed(echo: Process) -> None:
    async with (
        _network_that_can_fail(echo.address) as (address, fail),
        channel(address, token=TOKEN) as connection,
    ):
        hang = stream(connection, "Hang", timeout=60)
        assert await hang.read() == b"hanging"
        assert echo.metric("minmo_streams") == 1
        fail()
        await eventually(lambda: echo.metric("minmo_streams") == 0)


async def test_a_server_that_vanishes_without_a_word_is_noticed(echo: Process) -> None:
    async with (
        _network_that_can_fail(echo.address) as (address, fail),
        channel(address, token=TOKEN, keepalive_seconds=0.5) as connection,
    ):
        hang = stream(connection, "Hang", timeout=60)
        assert await hang.read() == b"hanging"
        fail()
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await asyncio.wait_for(hang.read(), DEADLINE_SECONDS)
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE


@contextlib.asynccontextmanager
async def _network_that_can_fail(target: str) -> AsyncIterator[tuple[str, Callable[[], None]]]:
    """A proxy which, once told, drops every byte but keeps its connections open."""
    works = True
    writers: list[asyncio.StreamWriter] = []
    connections: set[asyncio.Task[Any]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                if works:
                    writer.write(data)

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(asyncio.current_task())  # type: ignore[arg-type]
        host, port = target.split(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        writers.extend((writer, far_writer))
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    def fail() -> None:
        nonlocal works
        works = False

    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", fail
    for writer in writers:
        writer.close()
    await asyncio.wait(connections, timeout=DEADLINE_SECONDS)


# --- start and end


async def test_calls_are_refused_and_health_is_bad_until_the_service_has_started(
    start: Start,
) -> None:
    process = start("--hold", "--metrics-port", "-1")
    address = process.logged("starting")["address"]
    process.logged("held")
    async with reaching(address) as connection:
        assert await health(connection) == NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call(connection, "Echo")
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        assert parse(error.value).reason == "STARTING"
        with pytest.raises(StatusError, match="starting"):
            await wait_ready(address, deadline_seconds=0.1)
        assert not process.ready_file_exists
        process.popen.send_signal(signal.SIGUSR1)
        await wait_ready(address, deadline_seconds=5)
        assert await call(connection, "Echo", b"now") == b"now"
    process.ready()
    assert process.metrics_address == ""


async def test_a_signal_while_starting_ends_the_process(start: Start) -> None:
    process = start("--hold")
    process.logged("held")
    process.terminate()
    assert process.ended() == 0
    assert not process.ready_file_exists


async def test_sigterm_lets_open_streams_finish_and_refuses_new_calls(start: Start) -> None:
    process = start().ready()
    async with reaching(process.address) as connection:
        chat = stream(connection, "Chat")
        watch = health_pb2_grpc.HealthStub(connection).Watch(  # type: ignore[no-untyped-call]
            health_pb2.HealthCheckRequest(), timeout=10
        )
        assert (await watch.read()).status == SERVING
        await chat.write(b"before")
        assert await chat.read() == b"before"
        process.terminate()
        process.logged("draining")
        assert await health(connection) == NOT_SERVING
        assert (await watch.read()).status == NOT_SERVING
        assert over_http(process, "/readyz") == (503, "draining")
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call(connection, "Echo")
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        assert parse(error.value).reason == "DRAINING"
        await chat.write(b"after")
        assert await chat.read() == b"after"
        await chat.done_writing()
        assert await chat.read() is grpc.aio.EOF
        assert await chat.code() is grpc.StatusCode.OK
        # Who watches does not keep the process.
        assert await watch.read() is grpc.aio.EOF
    assert process.ended() == 0
    process.logged("echo stopped")
    assert not process.ready_file_exists


async def test_a_stream_that_outlasts_the_drain_is_ended_with_a_reason(start: Start) -> None:
    process = start("--drain-seconds", "0.2").ready()
    async with channel(process.address) as connection:
        hang = stream(connection, "Hang")
        assert await hang.read() == b"hanging"
        process.terminate()
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await hang.read()
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    assert parse(error.value).reason == "DRAINING"
    assert process.ended() == 0
    process.logged("hang ended")


async def test_a_second_signal_stops_at_once(start: Start) -> None:
    process = start("--drain-seconds", "60").ready()
    async with channel(process.address) as connection:
        hang = stream(connection, "Hang")
        assert await hang.read() == b"hanging"
        process.terminate()
        process.logged("draining")
        process.popen.send_signal(signal.SIGINT)
        assert process.ended() == 128 + signal.SIGINT
    assert not process.ready_file_exists


@pytest.mark.parametrize("flag", ["--port", "--metrics-port"])
def test_a_port_in_use_is_named_and_ends_the_start(start: Start, flag: str) -> None:
    # reuse_port: what another gRPC server would do to share the port
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as taken:
        port = taken.getsockname()[1]
        process = start(flag, str(port))
        assert process.ended() == 1
    text = process.log()
    assert f"127.0.0.1:{port}" in text
    assert f"the port is in use; stop what uses it, or choose another {flag}" in text
    assert "Traceback" not in text


def test_a_service_that_cannot_start_ends_with_status_1_and_says_why(start: Start) -> None:
    process = start("--fail")
    assert process.ended() == 1
    assert "no weights in /nowhere" in process.log()


# --- TLS


async def test_tls_lets_in_only_clients_that_the_ca_knows(start: Start, tmp_path: Path) -> None:
    ca, stranger = trustme.CA(), trustme.CA()
    files = {
        "ca": ca.cert_pem,
        "cert": ca.issue_cert("localhost").cert_chain_pems[0],
        "stranger-ca": stranger.cert_pem,
    }
    server, client = ca.issue_cert("localhost"), ca.issue_cert("minmo-client")
    foreign = stranger.issue_cert("minmo-client")
    for name, certificate in (("server", server), ("client", client), ("foreign", foreign)):
        files[f"{name}-cert"] = certificate.cert_chain_pems[0]
        files[f"{name}-key"] = certificate.private_key_pem
    paths = {name: tmp_path / f"{name}.pem" for name in files}
    for name, blob in files.items():
        blob.write_to_path(str(paths[name]))

    tls = ("--tls-cert", str(paths["server-cert"]), "--tls-key", str(paths["server-key"]))
    process = start(*tls, "--tls-client-ca", str(paths["ca"])).ready()
    good = {
        "tls_ca": paths["ca"],
        "tls_cert": paths["client-cert"],
        "tls_key": paths["client-key"],
        "tls_server_name": "localhost",
    }
    await wait_ready(process.address, deadline_seconds=5, **good)  # type: ignore[arg-type]
    async with channel(process.address, **good) as connection:  # type: ignore[arg-type]
        assert await call(connection, "Echo", b"private") == b"private"
    for wrong in (
        {"tls_ca": paths["stranger-ca"]},
        {"tls_cert": paths["foreign-cert"], "tls_key": paths["foreign-key"]},
        {"tls_cert": None, "tls_key": None},
        {"tls_server_name": "elsewhere"},
    ):
        async with channel(process.address, **{**good, **wrong}) as connection:  # type: ignore[arg-type]
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call(connection, "Echo")
            assert error.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_key_of_another_certificate_ends_the_start(start: Start, tmp_path: Path) -> None:
    ca = trustme.CA()
    ca.issue_cert("localhost").cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    ca.issue_cert("localhost").private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    process = start("--tls-cert", f"{tmp_path}/cert.pem", "--tls-key", f"{tmp_path}/key.pem")
    assert process.ended() == 1
    assert f"TLS cannot use {tmp_path}/cert.pem" in process.log()
