"""The gateway's /readyz follows its orchestrator, which comes and goes."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from minmo.stack.ports import PortReservation

ROOT = Path(__file__).parents[2]
DEADLINE_SECONDS = 20.0
ORCHESTRATOR = """
import asyncio, sys
import grpc
from grpc_health.v1 import health_pb2_grpc
from minmo.rpc.health import HealthServicer, Readiness

async def main():
    readiness = Readiness()
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(readiness, []), server)
    server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}")
    await server.start()
    if sys.argv[2] == "ready":
        readiness.mark_started()
    await asyncio.Event().wait()

asyncio.run(main())
"""


@dataclass
class Gateway:
    address: str
    http: aiohttp.ClientSession

    async def readiness(self) -> tuple[int, str]:
        async with self.http.get(f"http://{self.address}/readyz") as answer:
            return answer.status, (await answer.text()).strip()

    async def until(self, status: int, text: str) -> None:
        """Waits until /readyz says this."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                found = await self.readiness()
                if found[0] == status and text in found[1]:
                    return
                await asyncio.sleep(0.02)


@pytest.fixture
async def port() -> AsyncIterator[int]:
    reservation = PortReservation()
    yield reservation.port
    reservation.close()


@pytest.fixture
async def gateway(port: int, tmp_path: Path) -> AsyncIterator[Gateway]:
    ready = tmp_path / "ready.json"
    flags = ["--port", "0", "--orchestrator-address", f"127.0.0.1:{port}"]
    async with process("-m", "services.gateway", *flags, "--ready-file", str(ready)):
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not await asyncio.to_thread(ready.exists):
                await asyncio.sleep(0.02)
        address = json.loads(await asyncio.to_thread(ready.read_text))["address"]
        async with aiohttp.ClientSession() as http:
            yield Gateway(address, http)


@asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    environment = {name: value for name, value in os.environ.items() if "MINMO_" not in name}
    made = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        env={**environment, "PYTHONPATH": str(ROOT), "GRPC_VERBOSITY": "NONE"},
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        yield made
    finally:
        if made.returncode is None:
            made.kill()
        await made.wait()


def orchestrator(
    port: int, state: str = "ready"
) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    return process("-c", ORCHESTRATOR, str(port), state)


async def test_readiness_comes_back_with_the_orchestrator(gateway: Gateway, port: int) -> None:
    await gateway.until(503, "no orchestrator: ")
    async with orchestrator(port) as server:
        await gateway.until(200, "ready")
        server.kill()
        await server.wait()
        # A restart that takes seconds is no outage; one that takes longer is.
        assert (await gateway.readiness())[0] == 200
        await gateway.until(503, "no orchestrator: UNAVAILABLE")
    async with orchestrator(port, "starting"):
        await gateway.until(503, "no orchestrator: starting")
    async with orchestrator(port):
        await gateway.until(200, "ready")
