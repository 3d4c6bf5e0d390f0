"""The orchestrator says what it lacks, and takes no new conversations meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
import redis.asyncio as redis
from grpc_health.v1 import health_pb2_grpc

from minmo.rpc import metrics
from minmo.rpc.client import channel, problem_of
from minmo.rpc.health import HealthServicer, Readiness
from minmo.stack import redis as embedded
from services.orchestrator import watch as module
from services.orchestrator.store import SessionStore
from services.orchestrator.watch import watch_service, watch_store

DEADLINE_SECONDS = 20.0
PASSWORD = "sesame"


@dataclass
class Redis:
    """A real server."""

    folder: Path
    port: int = 0
    flags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.start()

    def start(self) -> None:
        command = [*embedded.command(self.port, self.folder), "--requirepass", PASSWORD]
        self.process = subprocess.Popen(
            [*command, *self.flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def url(self, password: str = PASSWORD) -> str:
        return f"redis://:{password}@127.0.0.1:{self.port}/0"

    async def command(self, *words: str) -> object:
        async with redis.Redis(port=self.port, password=PASSWORD) as client:
            return await client.execute_command(*words)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Redis]:
    folder = tmp_path / "redis"
    folder.mkdir()
    server = Redis(folder)
    try:
        yield server
    finally:
        server.kill()


@contextlib.asynccontextmanager
async def watching(
    watch: Callable[[Readiness], Awaitable[None]], lacks: metrics.NotReady = "redis"
) -> AsyncIterator[Readiness]:
    readiness = Readiness()
    readiness.mark_started()
    readiness.set_not_ready("not known yet", lacks)
    task = asyncio.ensure_future(watch(readiness))
    try:
        yield readiness
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(readiness: Readiness, reason: str) -> None:
    """Waits until health gives a reason that begins so; "" waits until it is ready."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while readiness.reason != reason if not reason else reason not in readiness.reason:
            await asyncio.sleep(0.01)


@pytest.fixture
async def store(server: Redis) -> AsyncIterator[SessionStore]:
    store = store_at(server.url())
    async with asyncio.timeout(DEADLINE_SECONDS):
        while await store.probe():
            await asyncio.sleep(0.02)
    yield store
    await store.close()


def store_at(url: str) -> SessionStore:
    return SessionStore(url, ttl_seconds=100, max_sessions_per_owner=3, deadline_seconds=1)


@pytest.fixture(autouse=True)
def _probes_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PROBE_SECONDS", 0.05)


async def test_redis_is_missed_after_a_while_and_found_again(
    server: Redis, store: SessionStore
) -> None:
    async with watching(lambda r: watch_store(r, store, grace_seconds=0.5)) as readiness:
        await until(readiness, "")
        server.kill()
        gone = time.monotonic()
        await until(readiness, "Redis does not answer")
        assert time.monotonic() - gone >= 0.5
        server.start()
        await until(readiness, "")


async def test_a_redis_that_refuses_the_password_is_no_redis(server: Redis) -> None:
    store = store_at(server.url("guessed"))
    async with watching(lambda r: watch_store(r, store)) as readiness:
        await until(readiness, "Redis refuses the password: ")
    await store.close()


async def test_a_redis_that_takes_no_writes_is_no_redis(server: Redis, store: SessionStore) -> None:
    async with watching(lambda r: watch_store(r, store, grace_seconds=0.1)) as readiness:
        await until(readiness, "")
        await server.command("CONFIG", "SET", "maxmemory", "1")
        await until(readiness, "Redis refuses writes: ")
        await server.command("CONFIG", "SET", "maxmemory", "0")
        await until(readiness, "")
        await server.command("REPLICAOF", "127.0.0.1", "1")
        await until(readiness, "Redis refuses writes: You can't write against a read only replica")
        await server.command("REPLICAOF", "NO", "ONE")
        await until(readiness, "")


async def test_a_full_disk_is_said(server: Redis, store: SessionStore) -> None:
    async with watching(lambda r: watch_store(r, store, grace_seconds=0.1)) as readiness:
        await until(readiness, "")
        # A server that cannot write its file takes no more, whatever is in the way.
        await server.command("CONFIG", "SET", "appendonly", "no")
        await server.command("CONFIG", "SET", "save", "3600 1")
        shutil.rmtree(server.folder)
        await server.command("BGSAVE")
        await until(readiness, "Redis refuses writes: MISCONF")
        server.folder.mkdir()


async def test_a_clock_that_is_wrong_is_said(store: SessionStore) -> None:
    shift = 0.0
    async with watching(
        lambda r: watch_store(r, store, clock=lambda: time.time() + shift)
    ) as readiness:
        await until(readiness, "")
        shift = 3600.0
        await until(readiness, "this machine's clock is 3600 s ahead of that of Redis")
        shift = -90.0
        await until(readiness, "this machine's clock is 90 s behind that of Redis")
        shift = 5.0
        await until(readiness, "")


@contextlib.asynccontextmanager
async def served(readiness: Readiness) -> AsyncIterator[str]:
    """Health of a service; its address."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(readiness, []), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        readiness.mark_stopping()
        await server.stop(0)


@pytest.mark.parametrize("balancing", ["by_load", "by_session"])
async def test_a_service_is_missed_when_no_replica_is_ready(
    balancing: str,
) -> None:
    one, other = Readiness(), Readiness()
    async with served(one) as first, served(other) as second:
        target = f"ipv4:{first},{second}"
        async with (
            channel(target, balancing=balancing) as connection,  # type: ignore[arg-type]
            watching(
                lambda r: watch_service(
                    r, "llm", connection, lambda: problem_of(target), grace_seconds=0.3
                ),
                "llm",
            ) as readiness,
        ):
            await until(readiness, "no llm is ready: starting")
            one.mark_started()
            other.mark_started()
            await until(readiness, "")
            one.set_not_ready("Triton is away", "triton")
            await asyncio.sleep(0.5)
            assert readiness.ready
            other.set_not_ready("Triton is away", "triton")
            await until(readiness, "no llm is ready: Triton is away")
            other.set_ready()
            await until(readiness, "")


async def test_a_process_without_what_it_needs_says_so_and_stays(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [
        *(sys.executable, "-m", "services.orchestrator", "--redis-url", "redis://127.0.0.1:1/0"),
        *("--encoder-address", "dns:///encoder.invalid:7101", "--llm-address", "127.0.0.1:1"),
        *("--voice-decoder-address", "127.0.0.1:1"),
    ]
    environment = {name: value for name, value in os.environ.items() if "MINMO_" not in name}
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *command, env=environment, stdout=file, stderr=file
        )
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not (started := _record(log, "starting")):
                assert process.returncode is None, log.read_text()
                await asyncio.sleep(0.02)
            reason = ""
            while not all(
                part in reason
                for part in ("Redis does not answer", "no encoder", "no llm", "no voice_decoder")
            ):
                status, reason = await asyncio.to_thread(_get, started["metrics_address"])
                assert status == 503
                await asyncio.sleep(0.05)
            assert reason.startswith(await problem_of(started["address"]))
        assert process.returncode is None
    finally:
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 10) == 0


def _record(log: Path, event: str) -> dict[str, str]:
    lines = [line for line in log.read_text().splitlines() if line.endswith("}")]
    found = [record for record in map(json.loads, lines) if record["event"] == event]
    return found[0] if found else {}


def _get(address: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}/readyz", timeout=5) as answer:
            return answer.status, answer.read().decode().strip()
    except urllib.error.HTTPError as refusal:
        return refusal.code, refusal.read().decode().strip()
