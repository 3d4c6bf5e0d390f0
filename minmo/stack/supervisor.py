"""Processes that need one another: started as early as they can be, stopped in reverse."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from minmo.stack.backoff import Backoff
from minmo.stack.errors import StackError
from minmo.stack.guard import Guard
from minmo.stack.logs import ProcessLog
from minmo.stack.process import ProcessEvent, ProcessSpec, State, SupervisedProcess

STOP_SECONDS = 10.0


class Supervisor:
    """Keeps a set of processes running.

    Args:
        specs: the processes; what one needs is another's name. No circles.
        logs: folder of their logs; it exists.
        segments: how the names of the shared memory begin that killed processes leave behind.
        backoff: makes the policy of restarts of one process.
        listener: hears of each change of a process, at once.
    """

    def __init__(
        self,
        specs: Sequence[ProcessSpec],
        logs: Path,
        *,
        segments: str = "",
        backoff: Callable[[], Backoff] = Backoff,
        listener: Callable[[ProcessEvent], None] = lambda _: None,
    ) -> None:
        self._logs = [ProcessLog(logs / f"{spec.name}.log") for spec in specs]
        self._guard = Guard(segments)
        self.processes: Mapping[str, SupervisedProcess] = {
            spec.name: SupervisedProcess(spec, log, self._guard, backoff(), listener)
            for spec, log in zip(specs, self._logs, strict=True)
        }

    async def start(self) -> None:
        """Starts each as soon as what it needs is ready; returns when all are.

        Those that are held back are left out.

        Raises:
            StackError: one does not start. The others go on: call `stop`.
        """
        begun = [process for process in self.processes.values() if not process.spec.held_back]
        await self._start(begun)

    async def add(self, name: str) -> None:
        """Starts a process that was held back, after those of its needs that were, too.

        Raises:
            StackError: it does not start.
        """
        process = self.processes[name]
        for need in process.spec.needs:
            if self.processes[need].state is State.NEW:
                await self.add(need)
        await self._start([process])

    async def _start(self, processes: Sequence[SupervisedProcess]) -> None:
        ready = {process.name: asyncio.Event() for process in processes}

        async def start(process: SupervisedProcess) -> None:
            for need in process.spec.needs:
                if need in ready:
                    await ready[need].wait()
            await process.start()
            ready[process.name].set()

        tasks = [asyncio.create_task(start(process)) for process in processes]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def failed(self) -> StackError:
        """Waits until a process has died too often; returns why."""
        ends = {
            asyncio.ensure_future(process.ended.wait()): process
            for process in self.processes.values()
        }
        try:
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in ends:
                wait.cancel()
        process = ends[done.pop()]
        return process.failure or StackError(f"{process.name} was stopped")

    async def stop(self, deadline_seconds: float = STOP_SECONDS) -> None:
        """Stops each once those that need it have stopped; after the deadline, kills the rest."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + deadline_seconds
        stopped = {name: asyncio.Event() for name in self.processes}

        async def stop(process: SupervisedProcess) -> None:
            for other in self.processes.values():
                if process.name in other.spec.needs:
                    await stopped[other.name].wait()
            left = max(0.0, deadline - loop.time())
            await process.stop(min(process.spec.stop_seconds, left))
            stopped[process.name].set()

        try:
            await asyncio.gather(*(stop(process) for process in self.processes.values()))
        finally:
            self.kill_now()
            self._guard.close()
            for log in self._logs:
                log.close()

    def kill_now(self) -> None:
        """Kills all at once; `stop`, also one that is under way, then has little to wait for."""
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill_now()
