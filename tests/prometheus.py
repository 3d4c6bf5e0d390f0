"""Prometheus and promtool as Debian packages them, and a server of it for a test."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientError, ClientSession, ClientTimeout

from minmo.stack.ports import PortReservation
from tests import debian

_START_SECONDS = 20.0
_STOP_SECONDS = 10.0
_QUERY_SECONDS = 10.0


@cache
def program(name: str) -> Path:
    """Where ``prometheus`` or ``promtool`` is: in the folder that `$PROMETHEUS` names, in PATH, or
    unpacked now from Debian's package where there is apt.

    It is unpacked and not installed: the package would start a server on this machine. Skips the
    test if there is none.
    """
    named = os.environ.get("PROMETHEUS")
    if named:
        return Path(named) / name
    if found := shutil.which(name):
        return Path(found)
    unpacked = debian.unpacked("prometheus")
    if unpacked is None:
        pytest.skip(
            "needs Prometheus: apt-get install prometheus, or name the folder of its programs "
            "in $PROMETHEUS"
        )
    return unpacked / "usr" / "bin" / name


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs promtool; its output is for the assertion's message."""
    return subprocess.run(
        [str(program("promtool")), *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


@dataclass
class Prometheus:
    """A server that runs.

    Attributes:
        url: of its HTTP API.
    """

    url: str
    _session: ClientSession

    async def get(self, path: str, **parameters: str) -> Any:
        """What its API answers, without the envelope. Fails the test if it is an error."""
        async with self._session.get(f"{self.url}/api/v1/{path}", params=parameters) as response:
            answer = json.loads(await response.text())
        assert answer["status"] == "success", f"{parameters or path}: {answer}"
        return answer["data"]

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """An expression's samples now."""
        data = await self.get("query", query=expression)
        return list(data["result"])

    async def ready(self, deadline_seconds: float) -> None:
        """Waits until it serves."""
        deadline = time.monotonic() + deadline_seconds
        while True:
            with contextlib.suppress(ClientError, OSError):
                async with self._session.get(f"{self.url}/-/ready") as response:
                    if response.status == 200:
                        return
            assert time.monotonic() < deadline, "Prometheus does not start"
            await asyncio.sleep(0.05)


@asynccontextmanager
async def prometheus(config: Path, folder: Path) -> AsyncIterator[Prometheus]:
    """A Prometheus with a configuration; its data and its log are in a folder."""
    reservation = PortReservation()
    command = [
        str(program("prometheus")),
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={reservation.address}",
        "--log.level=warn",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
        try:
            timeout = ClientTimeout(total=_QUERY_SECONDS)
            async with ClientSession(timeout=timeout) as session:
                server = Prometheus(f"http://{reservation.address}", session)
                await server.ready(_START_SECONDS)
                yield server
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), _STOP_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()
            reservation.close()
