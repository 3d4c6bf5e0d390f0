"""The embedded Redis-compatible server, as the stack starts it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis.asyncio
from redis.exceptions import ResponseError

from minmo.stack import redis as embedded
from minmo.stack.ports import PortReservation
from minmo.stack.process import ProcessSpec
from minmo.stack.supervisor import Supervisor


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[tuple[Supervisor, redis.asyncio.Redis]]:
    reservation = PortReservation()

    async def ready(_: int) -> bool:
        return await embedded.answers(reservation.port)

    command = embedded.command(reservation.port, tmp_path)
    supervisor = Supervisor([ProcessSpec("redis", command, ready)], tmp_path)
    client = redis.asyncio.Redis(port=reservation.port, decode_responses=True)
    await supervisor.start()
    yield supervisor, client
    await client.aclose()
    await supervisor.stop()
    reservation.close()


async def test_what_was_answered_survives_kill_9(server) -> None:
    supervisor, client = server
    for number in range(200):
        await client.set(f"key{number}", number)
    await supervisor.processes["redis"].kill()
    await supervisor.processes["redis"].wait_ready(10)
    assert await client.dbsize() == 200
    assert await client.get("key199") == "199"


async def test_a_full_server_refuses_writes_and_keeps_what_it_has(server) -> None:
    _, client = server
    await client.set("mine", "kept")
    megabyte = "x" * 1_000_000
    with pytest.raises(ResponseError, match="maxmemory"):
        for number in range(2 * embedded.MAX_MEMORY_MEGABYTES):
            await client.set(f"big{number}", megabyte)
    assert await client.get("mine") == "kept"
