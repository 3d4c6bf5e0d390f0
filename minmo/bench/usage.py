"""What the servers use while people talk with them: processor time, memory, tokens, Redis."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import psutil
import redis.asyncio as redis
from aiohttp import ClientError as WebError
from aiohttp import ClientSession, ClientTimeout
from redis.exceptions import RedisError

_SAMPLE_SECONDS = 1.0
_SCRAPE_SECONDS = 3.0
_TOKENS = re.compile(r"^minmo_llm_tokens_total(?:\{[^}]*\})? (\S+)", re.MULTILINE)
OWN = "this process"
"""Who measures, among the processes."""


@dataclass(frozen=True)
class Usage:
    """What was used in a stretch of time.

    Attributes:
        seconds: its length.
        cpu_seconds: processor time by process.
        memory_bytes: proportional share of memory (PSS) at its end by process.
        tokens: that the LLMs made, as their `/metrics` say; None if nobody says it.
        redis_written_bytes: what Redis' append-only file grew by; None if it is not ours to ask.
    """

    seconds: float
    cpu_seconds: Mapping[str, float] = field(default_factory=dict)
    memory_bytes: Mapping[str, int] = field(default_factory=dict)
    tokens: int | None = None
    redis_written_bytes: int | None = None

    def plus(self, other: Self) -> Usage:
        """Both together; memory is the larger one."""
        names = [*self.cpu_seconds, *(n for n in other.cpu_seconds if n not in self.cpu_seconds)]
        memory = {**self.memory_bytes, **other.memory_bytes}
        return Usage(
            self.seconds + other.seconds,
            {n: self.cpu_seconds.get(n, 0) + other.cpu_seconds.get(n, 0) for n in names},
            {n: max(self.memory_bytes.get(n, 0), other.memory_bytes.get(n, 0)) for n in memory},
            _sum(self.tokens, other.tokens),
            _sum(self.redis_written_bytes, other.redis_written_bytes),
        )


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other


class Processes:
    """Processor time of processes that come and go under names that stay.

    Args:
        pids: who runs now, by name; children are counted with them, but for `OWN`.
    """

    def __init__(self, pids: Callable[[], Mapping[str, int]]) -> None:
        self._pids = pids
        self._families: dict[int, list[psutil.Process]] = {}
        self._seen: dict[tuple[str, int], float] = {}

    async def run(self) -> None:
        """Looks every second until it is cancelled: what a process used dies with it."""
        while True:
            self.look()
            await asyncio.sleep(_SAMPLE_SECONDS)

    def look(self) -> None:
        """Notes what each has used so far."""
        for name, pid in self._pids().items():
            for process in self._family(name, pid):
                try:
                    times = process.cpu_times()
                except psutil.Error:
                    self._families.pop(pid, None)
                    continue
                self._seen[name, process.pid] = times.user + times.system

    def cpu_seconds(self) -> dict[str, float]:
        """Processor time since each began, by name, of all that had it."""
        self.look()
        total: dict[str, float] = {}
        for (name, _), seconds in self._seen.items():
            total[name] = total.get(name, 0.0) + seconds
        return total

    def memory_bytes(self) -> dict[str, int]:
        """Proportional share of memory by name; slow, as the kernel walks through all pages."""
        shares: dict[str, int] = {}
        for name, pid in self._pids().items():
            for process in self._family(name, pid):
                try:
                    shares[name] = shares.get(name, 0) + process.memory_full_info().pss
                except psutil.Error:
                    continue
        return shares

    def _family(self, name: str, pid: int) -> list[psutil.Process]:
        if pid not in self._families:
            try:
                process = psutil.Process(pid)
                children = [] if name == OWN else process.children(recursive=True)
                self._families[pid] = [process, *children]
            except psutil.Error:
                return []
        return self._families[pid]


class Meter:
    """Measures stretches of time one after the other.

    Args:
        processes: whose processor time and memory; None measures neither.
        metrics_urls: of the LLMs that may say how many tokens they made.
        redis_url: of the Redis that may be asked; None asks none.
    """

    def __init__(
        self,
        processes: Processes | None,
        metrics_urls: Sequence[str] = (),
        redis_url: str | None = None,
    ) -> None:
        self._processes = processes
        self._metrics_urls = metrics_urls
        self._redis_url = redis_url
        self._cpu: dict[str, float] = {}
        self._tokens: dict[str, int] = {}
        self._written: int | None = None
        self._began = 0.0

    async def begin(self) -> None:
        """The first stretch begins."""
        self._began = asyncio.get_running_loop().time()
        self._cpu = self._processes.cpu_seconds() if self._processes is not None else {}
        self._tokens = await self._read_tokens()
        self._written = await self._read_written()

    async def next(self, *, memory: bool = True) -> Usage:
        """What was used since the stretch began; the next one begins.

        Args:
            memory: whether it is measured too, which takes some time.
        """
        before = self._cpu, self._tokens, self._written, self._began
        processes = self._processes
        shares = {}
        if processes is not None and memory:
            shares = await asyncio.to_thread(processes.memory_bytes)
        await self.begin()
        cpu, tokens, written, began = before
        return Usage(
            self._began - began,
            {name: total - cpu.get(name, 0.0) for name, total in self._cpu.items()},
            shares,
            # One that was started again counts from nothing.
            sum(
                count - tokens.get(url, 0) if count >= tokens.get(url, 0) else count
                for url, count in self._tokens.items()
            )
            if self._tokens
            else None,
            None if self._written is None or written is None else max(0, self._written - written),
        )

    async def _read_tokens(self) -> dict[str, int]:
        found = {}
        async with ClientSession(timeout=ClientTimeout(_SCRAPE_SECONDS)) as web:
            for url in self._metrics_urls:
                try:
                    async with web.get(url) as response:
                        text = await response.text()
                except (WebError, OSError, TimeoutError):
                    continue
                if match := _TOKENS.search(text):
                    found[url] = int(float(match[1]))
        return found

    async def _read_written(self) -> int | None:
        if self._redis_url is None:
            return None
        client = redis.Redis.from_url(self._redis_url, socket_timeout=_SCRAPE_SECONDS)
        try:
            said: dict[str, Any] = await client.info("persistence")
        except (RedisError, OSError):
            return None
        finally:
            await client.aclose()
        return int(said["aof_current_size"]) if said.get("aof_enabled") else None


async def redis_bytes(url: str, session_ids: Sequence[str]) -> dict[str, int]:
    """Memory that Redis needs for sessions, by session. Raises RedisError, OSError."""
    client = redis.Redis.from_url(url, socket_timeout=_SCRAPE_SECONDS)
    found: dict[str, int] = {}
    try:
        for session_id in session_ids:
            key = f"minmo:session:{session_id}"
            keys = [key, *(f"{key}:{part}" for part in ("turns", "lease", "embeddings", "heard"))]
            sizes = [await client.memory_usage(one, samples=0) for one in keys]
            found[session_id] = sum(size or 0 for size in sizes)
    finally:
        await client.aclose()
    return found
