"""Triton with the LLM and the service in front of it, as real processes, and a way to call them."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import grpc
import httpx
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from minmo.rpc.errors import StatusError, parse
from minmo.stack.ports import PortReservation
from minmo.stack.triton import triton_command
from minmo.v1 import llm_pb2
from minmo.v1.llm_pb2_grpc import LlmServiceStub

DEADLINE_SECONDS = 60.0

Request = llm_pb2.RunRequest
Response = llm_pb2.RunResponse


class TritonProcess:
    """Triton on ports of its own, which a new start keeps."""

    def __init__(self, **variables: str) -> None:
        self._ports = [PortReservation() for _ in range(3)]
        self.grpc_port, self.http_port, self.metrics_port = (r.port for r in self._ports)
        self._variables = variables
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command, environment = triton_command(
            self.grpc_port, self.http_port, self.metrics_port, threads=2
        )
        self._process = subprocess.Popen(command, env=environment | self._variables)

    def wait_ready(self) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < deadline:
            assert self._process is not None and self._process.poll() is None
            try:
                if httpx.get(f"http://127.0.0.1:{self.http_port}/v2/health/ready").is_success:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError("Triton did not become ready")

    def kill(self) -> list[psutil.Process]:
        """kill -9, as an out-of-memory killer would; returns the processes that it had started."""
        assert self._process is not None
        children = psutil.Process(self._process.pid).children(recursive=True)
        self._process.kill()
        self._process.wait()
        return children

    def stop(self) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def metric(self, name: str) -> float:
        page = httpx.get(f"http://127.0.0.1:{self.metrics_port}/metrics").text
        return float(
            next(line.split()[1] for line in page.splitlines() if line.startswith(f"{name} "))
        )


class LlmProcess:
    """The service."""

    def __init__(
        self,
        folder: Path,
        triton_port: int,
        *flags: str,
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._ready = folder / "ready.json"
        self._log = folder / "llm.log"
        self._environment = {**os.environ, **variables}
        self._command = [
            *(sys.executable, "-m", "services.llm", "--ready-file", str(self._ready)),
            *("--triton-address", f"127.0.0.1:{triton_port}", "--drain-seconds", "1", *flags),
        ]

    def start(self) -> str:
        """Starts it; returns its address."""
        self.start_without_waiting()
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not self._ready.exists():
            assert self._process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        return str(json.loads(self._ready.read_text())["address"])

    def start_without_waiting(self) -> Path:
        """Starts it; its log."""
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, env=self._environment, stderr=log)
        return self._log

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        self._process.terminate()
        return self._process.wait(20)


async def logged(log: Path, event: str) -> dict[str, Any]:
    """Waits until an event is in a log; what it says."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            for record in _records(log):
                if record["event"] == event:
                    return record
            await asyncio.sleep(0.02)


def _records(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]


class Caller:
    """One `Run` stream."""

    _ids = itertools.count()

    def __init__(self, channel: grpc.aio.Channel, session: str | None = None) -> None:
        self.session = session or f"session-{next(self._ids)}-{time.time_ns()}"
        self.call: Any = LlmServiceStub(channel).Run()
        self._answers: dict[str, asyncio.Queue[Response]] = defaultdict(asyncio.Queue)
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for response in self.call:
            self._answers[response.operation_id].put_nowait(response)

    async def ended(self) -> StatusError:
        """How the service ends the stream."""
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await asyncio.wait_for(asyncio.shield(self._reader), DEADLINE_SECONDS)
        return parse(raised.value)

    async def send(self, branch: str = "main", epoch: int = 0, name: str = "", **what: Any) -> str:
        """Sends an operation, given as `prefill=...` and so on; returns its id."""
        name = name or f"operation-{next(self._ids)}"
        request = Request(
            operation_id=name, session_id=self.session, branch=branch, epoch=epoch, **what
        )
        await self.call.write(request)
        return name

    async def next(self, name: str) -> Response:
        """The next answer to an operation."""
        return await asyncio.wait_for(self._answers[name].get(), DEADLINE_SECONDS)

    async def events(self, name: str) -> list[Response]:
        """All answers to an operation that come from now on."""
        answers = [await self.next(name)]
        while answers[-1].HasField("token"):
            answers.append(await self.next(name))
        return answers

    async def ask(self, **what: Any) -> Response:
        """Sends an operation, and waits for its only answer."""
        return await self.next(await self.send(**what))

    async def done(self, **what: Any) -> Response:
        """Like `ask`, but the answer is no error."""
        answer = await self.ask(**what)
        assert not answer.HasField("error"), answer.error
        return answer

    async def tokens(self, position: int, count: int, **generate: Any) -> list[int]:
        """Generates; the ids of the tokens."""
        what = llm_pb2.Generate(position=position, max_tokens=count, **generate)
        answers = await self.events(await self.send(generate=what))
        assert answers[-1].HasField("generate_done"), answers[-1]
        return [answer.token.id for answer in answers[:-1]]

    async def close(self) -> None:
        self.call.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)


@asynccontextmanager
async def caller(address: str, session: str | None = None) -> AsyncIterator[Caller]:
    """A stream with a connection of its own."""
    async with grpc.aio.insecure_channel(address) as channel:
        made = Caller(channel, session)
        try:
            yield made
        finally:
            await made.close()


def text(*words: str) -> list[llm_pb2.PromptPart]:
    return [llm_pb2.PromptPart(text=word) for word in words]


def prefill(parts: Sequence[llm_pb2.PromptPart], position: int = 0, **more: Any) -> Any:
    return llm_pb2.Prefill(position=position, parts=parts, **more)


def matrix(data: bytes, columns: int = 576) -> NDArray[np.float32]:
    return np.frombuffer(data, "<f4").reshape(-1, columns)
