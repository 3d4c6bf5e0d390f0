"""A service of one's own, beside those that run: started, waited for, stopped."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from minmo.client.errors import ClientError

_START_SECONDS = 30.0
_STOP_SECONDS = 10.0


@asynccontextmanager
async def running_service(
    name: str, folder: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[str, psutil.Process]]:
    """Runs a service: its address and its process.

    Args:
        name: of the service, as in ``gateway``.
        folder: for its ready file and log.
        arguments: more settings.
        environment: settings that no other process may see on a command line.

    Raises:
        ClientError: it did not start.
    """
    ready, log = folder / f"{name}.json", folder / f"{name}.log"
    ready.unlink(missing_ok=True)
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", f"services.{name}", "--port", "0", "--metrics-port", "-1"),
            *("--ready-file", str(ready), "--log-level", "warning", "--drain-seconds", "0"),
            *arguments,
            stdout=output,
            stderr=output,
            env={**os.environ, **(environment or {})},
        )
    try:
        give_up = time.monotonic() + _START_SECONDS
        while not ready.exists():
            if process.returncode is not None or time.monotonic() > give_up:
                raise ClientError(f"the {name} did not start: {log.read_text()[-500:]}")
            await asyncio.sleep(0.05)
        yield json.loads(ready.read_text())["address"], psutil.Process(process.pid)
    finally:
        await end(process)


async def end(process: asyncio.subprocess.Process) -> None:
    """Ends a process: asks it to, and kills it if it does not."""
    if process.returncode is None:
        process.terminate()
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
