"""Sessions where Sentinels watch a master and its replica, and the master dies."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as redis
from redis.exceptions import RedisError

from minmo.rpc import redis_client
from minmo.rpc.errors import StatusError
from minmo.stack import redis as embedded
from services.orchestrator.session_settings import Settings
from services.orchestrator.store import SessionStore, StoredTurn

PASSWORD = "open sesame/?"
QUOTED = "open%20sesame%2F%3F"
SETTINGS = Settings(system_prompt="Be brief.")
DEADLINE_SECONDS = 15


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Servers:
    """Two servers, one a replica of the other, and three Sentinels."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self.ports = [free_port(), free_port()]
        self.sentinel_ports = [free_port() for _ in range(3)]
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        for port in self.ports:
            (folder / str(port)).mkdir()

    async def start(self) -> None:
        """Returns when the Sentinels know the servers and each other."""
        self._start_server(self.ports[0])
        self._start_server(self.ports[1], replica_of=self.ports[0])
        async with asyncio.timeout(DEADLINE_SECONDS):
            # Sentinels ask for replicas at their start, and then every ten seconds.
            while not await self._has_all(self.ports[1]):
                await asyncio.sleep(0.05)
            for port in self.sentinel_ports:
                self._start_sentinel(port)
            for port in self.sentinel_ports:
                while not await self._is_watching(port):
                    await asyncio.sleep(0.05)

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.sentinel_ports)
        return f"redis+sentinel://:{QUOTED}@{hosts}/sessions/0"

    def _start_server(self, port: int, replica_of: int | None = None) -> None:
        command = embedded.command(port, self._folder / str(port))
        command += ["--requirepass", PASSWORD, "--masterauth", PASSWORD]
        command += ["--repl-diskless-sync-delay", "0"]
        if replica_of is not None:
            command += ["--replicaof", f"127.0.0.1 {replica_of}"]
        self._start(port, command)

    def _start_sentinel(self, port: int) -> None:
        config = self._folder / f"sentinel-{port}.conf"
        config.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {self._folder}\n"
            f"sentinel monitor sessions 127.0.0.1 {self.ports[0]} 2\n"
            f'sentinel auth-pass sessions "{PASSWORD}"\n'
            "sentinel down-after-milliseconds sessions 500\n"
            "sentinel failover-timeout sessions 3000\n"
        )
        self._start(port, [str(embedded.binary()), str(config), "--sentinel"])

    def _start(self, port: int, command: list[str]) -> None:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self._processes[port] = process
        self._stack.callback(process.wait, 10)
        self._stack.callback(process.kill)

    def kill(self, port: int) -> None:
        self._processes[port].send_signal(signal.SIGKILL)
        self._processes[port].wait(10)

    async def command(self, port: int, *words: str) -> Any:
        """What a server, or a Sentinel, answers."""
        password = PASSWORD if port in self.ports else None
        async with redis.Redis(port=port, password=password) as server:
            return await server.execute_command(*words)

    async def is_master(self, port: int) -> bool:
        """Whether a server takes itself for the master."""
        return bool((await self.command(port, "INFO", "replication"))["role"] == "master")

    async def _has_all(self, port: int) -> bool:
        with suppress(RedisError, OSError):
            info = await self.command(port, "INFO", "replication")
            return bool(info["role"] == "slave" and info["master_link_status"] == "up")
        return False

    async def _is_watching(self, port: int) -> bool:
        with suppress(RedisError, OSError):
            async with redis.Redis(port=port) as sentinel:
                master = (await sentinel.sentinel_masters())["sessions"]
                replicas = await sentinel.sentinel_slaves("sessions")
                return (
                    master["num-other-sentinels"] == 2
                    and len(replicas) == 1
                    and replicas[0]["master-link-status"] == "ok"
                )
        return False


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[Servers]:
    with ExitStack() as stack:
        servers = Servers(tmp_path, stack)
        await servers.start()
        yield servers


@pytest.fixture
async def store(servers: Servers) -> AsyncIterator[SessionStore]:
    store = SessionStore(
        servers.url, ttl_seconds=100, max_sessions_per_owner=10, deadline_seconds=DEADLINE_SECONDS
    )
    yield store
    await store.close()


async def test_no_turn_is_lost_when_the_master_dies(servers: Servers, store: SessionStore) -> None:
    made = await store.create("me", SETTINGS)
    await store.acquire(made.session_id, "first", take_over=False)
    await store.acquire(made.session_id, "second", take_over=True)
    epoch = await store.next_epoch(made.session_id, "replica")
    turns = [StoredTurn(index, "user", f"turn {index}") for index in range(60)]
    for turn in turns:
        if turn.index == 30:
            # Nothing is waited for: the turn before was written a moment ago.
            servers.kill(servers.ports[0])
        await store.put_turn(made.session_id, "second", turn)
    found = await store.get(made.session_id, "me")
    assert list(found.turns) == turns
    assert await store.next_epoch(made.session_id, "replica") == epoch + 1
    await store.refresh(made.session_id, "second")
    # Who had lost the session before has lost it on the new master too.
    with pytest.raises(StatusError, match="taken over"):
        await store.put_turn(made.session_id, "first", StoredTurn(99, "user", "too late"))
    # Both masters were asked to wait for a replica.
    assert "cmdstat_wait" in await servers.command(servers.ports[1], "INFO", "commandstats")


async def test_a_master_without_its_replica_is_trusted(
    servers: Servers, store: SessionStore
) -> None:
    made = await store.create("me", SETTINGS)
    servers.kill(servers.ports[1])
    async with asyncio.timeout(5):
        for index in range(50):
            await store.put_turn(made.session_id, "stream", StoredTurn(index, "user", "words"))
    assert len((await store.get(made.session_id, "me")).turns) == 50


async def test_a_master_whose_place_was_taken_is_written_to_no_more(
    servers: Servers, store: SessionStore
) -> None:
    made = await store.create("me", SETTINGS)
    await servers.command(servers.sentinel_ports[0], "SENTINEL", "FAILOVER", "sessions")
    # The old one goes on as if it were the master, for seconds, until the Sentinels tell it.
    written = 0
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not await servers.is_master(servers.ports[1]) or written < 100:
            await store.put_turn(made.session_id, "stream", StoredTurn(written, "user", "words"))
            written += 1
    assert await servers.is_master(servers.ports[0])
    turns = f"minmo:session:{made.session_id}:turns"
    assert await servers.command(servers.ports[1], "HLEN", turns) == written


@pytest.mark.parametrize(
    ("url", "found"),
    [
        (
            "redis+sentinel://one:1,two/name",
            redis_client.SentinelUrl((("one", 1), ("two", 26379)), "name"),
        ),
        (
            "rediss+sentinel://me:secret%2F@[::1]:5/a-b/3?sentinel_password=other",
            redis_client.SentinelUrl(
                (("::1", 5),), "a-b", 3, "me", "secret/", tls=True, options={"password": "other"}
            ),
        ),
    ],
)
def test_a_url_with_sentinels_says_all_of_it(url: str, found: redis_client.SentinelUrl) -> None:
    redis_client.check_url(url)
    assert redis_client.SentinelUrl.parse(url) == found


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://one:1",
        "redis+sentinel://one:1/name/zero",
        "redis+sentinel://one:1,/name",
        "redis+sentinel://one:1/name?sentinel=2",
        "http://one:1/name",
    ],
)
def test_a_url_that_says_too_little_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"give|host:port|options"):
        redis_client.check_url(url)
