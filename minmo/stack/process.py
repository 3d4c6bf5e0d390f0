"""One supervised process: started, watched until ready, started again when it dies, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from minmo.stack import launch
from minmo.stack.backoff import Backoff
from minmo.stack.errors import StackError
from minmo.stack.guard import Guard
from minmo.stack.logs import ProcessLog

_POLL_SECONDS = 0.05
_PROBE_SECONDS = 5.0
_REAP_SECONDS = 5.0

Probe = Callable[[int], Awaitable[bool]]
"""Says whether the process with this id is ready; OSError counts as "not yet"."""


@dataclass(frozen=True)
class ProcessSpec:
    """What a process is, how it shows that it is ready, how long it may take.

    Attributes:
        name: short name, as in ``encoder``; names its log.
        command: program and arguments, the same at every start.
        ready: asked until it says True.
        environment: the whole environment.
        needs: names of the processes that must be ready before this one starts. It is stopped
            before them, and not restarted with them.
        ready_seconds: longest time from the start until it is ready.
        stop_seconds: time between SIGTERM and SIGKILL.
        tidy: removes what the process, when killed, leaves behind; called after each end of it.
        held_back: it is not started with the others, but when it is asked for.
    """

    name: str
    command: Sequence[str]
    ready: Probe
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    needs: Sequence[str] = ()
    ready_seconds: float = 60.0
    stop_seconds: float = 5.0
    tidy: Callable[[], None] = lambda: None
    held_back: bool = False


class State(StrEnum):
    """Where a process stands."""

    NEW = "new"
    STARTING = "starting"
    READY = "ready"
    DEAD = "dead"
    """Died, and will be started again."""
    STOPPED = "stopped"
    FAILED = "failed"
    """Will not be started again; `SupervisedProcess.failure` says why."""


@dataclass(frozen=True)
class ProcessEvent:
    """A process has come into a state."""

    name: str
    state: State
    pid: int | None = None
    seconds: float = 0.0
    """READY: from the start. DEAD: until the next start. STOPPED: from the request."""
    detail: str = ""


class SupervisedProcess:
    """A process that is kept running.

    It has a session of its own (Ctrl-C in the terminal does not reach it) and dies with this
    process, whatever ends that. Use it on an event loop of the main thread: the kernel counts the
    end of the thread that started it as the end of its parent.

    Args:
        spec: what to run.
        log: where its output goes; the caller closes it.
        guard: ends its descendants if this process is killed.
        backoff: how restarts are spaced.
        listener: hears of each change, at once.
    """

    def __init__(
        self,
        spec: ProcessSpec,
        log: ProcessLog,
        guard: Guard,
        backoff: Backoff | None = None,
        listener: Callable[[ProcessEvent], None] = lambda _: None,
    ) -> None:
        self.spec = spec
        self.log = log
        self._guard = guard
        self.state = State.NEW
        self.pid: int | None = None
        self.failure: StackError | None = None
        self.starts = 0
        self._backoff = backoff or Backoff()
        self._listener = listener
        self._task: asyncio.Task[None] | None = None
        self._exit: asyncio.Task[int] | None = None
        self._ready = asyncio.Event()
        self._ended = asyncio.Event()
        self._gone = asyncio.Event()
        self._gone.set()
        self._stopping = asyncio.Event()
        self._may_start = asyncio.Event()
        self._may_start.set()

    @property
    def name(self) -> str:
        """Name of the process."""
        return self.spec.name

    @property
    def ended(self) -> asyncio.Event:
        """Set once it runs no more and will not be started again."""
        return self._ended

    async def start(self) -> None:
        """Starts it; returns when it is ready.

        Raises:
            StackError: it ended or was not ready in time; the text has the end of its log.
        """
        self._task = asyncio.create_task(self._supervise(), name=f"supervise {self.name}")
        await self.wait_ready(self.spec.ready_seconds + 2 * _REAP_SECONDS)

    async def wait_ready(self, deadline_seconds: float) -> None:
        """Waits until it is ready (again).

        Raises:
            StackError: it has ended for good, or the deadline passed.
        """
        waits = [asyncio.ensure_future(event.wait()) for event in (self._ready, self._ended)]
        try:
            await asyncio.wait(waits, timeout=deadline_seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if self._ended.is_set():
            raise self.failure or StackError(f"{self.name} was stopped")
        if not self._ready.is_set():
            raise StackError(
                f"{self.name} is not ready after {deadline_seconds:g} s (it is {self.state})"
            )

    async def kill(self, number: signal.Signals = signal.SIGKILL, *, restart: bool = True) -> None:
        """Ends the process as an accident would, and waits until it is gone.

        It is then started again, unless `restart` is False: then that waits for `resume`.
        """
        if not restart:
            self._may_start.clear()
        self.send_signal(number)
        await self._gone.wait()

    def resume(self) -> None:
        """Lets a process that was killed with ``restart=False`` start again."""
        self._may_start.set()

    async def stop(self, deadline_seconds: float | None = None) -> None:
        """Ends it for good: SIGTERM, and SIGKILL after the deadline (the spec's if None)."""
        began = asyncio.get_running_loop().time()
        self._stopping.set()
        if self._task is None:
            self._set(State.STOPPED)
            self._ended.set()
            return
        seconds = self.spec.stop_seconds if deadline_seconds is None else deadline_seconds
        self.send_signal(signal.SIGTERM)
        _, running = await asyncio.wait([self._task], timeout=seconds)
        if running:
            self.kill_now()
            await asyncio.wait([self._task], timeout=_REAP_SECONDS)
        if self.state is not State.FAILED:
            elapsed = asyncio.get_running_loop().time() - began
            self._set(State.STOPPED, seconds=elapsed, detail="killed" if running else "")

    def kill_now(self) -> None:
        """Kills it and all its descendants in its session's group; nothing is awaited."""
        self._stopping.set()
        self._kill_group()

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process, if it runs."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def _supervise(self) -> None:
        try:
            while not self._stopping.is_set():
                why = await self._run_once()
                if self._stopping.is_set():
                    return
                if not self._ready.is_set() and self.starts == 1:
                    self._fail(f"{self.name} did not start: {why}")
                    return
                self._ready.clear()
                delay = self._backoff.next_delay(asyncio.get_running_loop().time())
                if delay is None:
                    self._fail(
                        f"{self.name} died {self._backoff.deaths} times within "
                        f"{self._backoff.window_seconds:g} s: {why}"
                    )
                    return
                self._set(State.DEAD, seconds=delay, detail=why)
                await self._pause(delay)
        except OSError as error:
            self._fail(f"{self.name} cannot be started: {error.strerror or error}")
        finally:
            self._ready.clear()
            self._ended.set()
            if self.state is not State.FAILED:
                self.state = State.STOPPED

    async def _pause(self, seconds: float) -> None:
        """Waits before the next start; shorter when it is to be stopped."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)
        resumed = asyncio.ensure_future(self._may_start.wait())
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait([resumed, stopping], return_when=asyncio.FIRST_COMPLETED)
        resumed.cancel()
        stopping.cancel()

    async def _run_once(self) -> str:
        """Runs the process from a start to its end; returns how it ended."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        launcher = [sys.executable, "-I", "-S", str(Path(launch.__file__)), str(os.getpid())]
        process = await asyncio.create_subprocess_exec(
            *launcher,
            *self.spec.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=self.log.writer,
            stderr=self.log.writer,
            env=dict(self.spec.environment),
            start_new_session=True,
        )
        self.pid = process.pid
        self._guard.watch(process.pid)
        self.starts += 1
        self._gone.clear()
        self._exit = asyncio.ensure_future(process.wait())
        self._set(State.STARTING)
        if self._stopping.is_set():
            self._kill_group()
        why = ""
        try:
            why = await self._until_ready(process.pid, self._exit)
            if not why and not self._exit.done():
                self._set(State.READY, seconds=loop.time() - began)
                self._ready.set()
            await asyncio.wait([self._exit])
        finally:
            # Also when this task is cancelled: nothing of the process may be left.
            self._kill_group()
            self._guard.forget(process.pid)
            self.pid = None
            self._gone.set()
            with contextlib.suppress(OSError):
                self.spec.tidy()
        return why or _how_it_ended(self._exit.result())

    async def _until_ready(self, pid: int, ended: asyncio.Future[int]) -> str:
        """Waits until the process is ready or over; returns what went wrong, or nothing."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.spec.ready_seconds
        while not ended.done():
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(_PROBE_SECONDS):
                    if await self.spec.ready(pid):
                        return ""
            if loop.time() > deadline and not self._stopping.is_set():
                self._kill_group()
                await asyncio.wait([ended], timeout=_REAP_SECONDS)
                return f"it was not ready after {self.spec.ready_seconds:g} s"
            await asyncio.wait([ended], timeout=_POLL_SECONDS)
        return ""

    def _kill_group(self) -> None:
        if self.pid is None:
            return
        # The group is there once the child has made its session, and outlives the child if a
        # descendant of it does.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if self._exit is None or not self._exit.done():
            self.send_signal(signal.SIGKILL)

    def _fail(self, what: str) -> None:
        tail = self.log.tail()
        ending = f"; its log {self.log.path} ends with:\n{tail}" if tail else "; it wrote no log"
        self.failure = StackError(what + ending)
        self._set(State.FAILED, detail=what)

    def _set(self, state: State, seconds: float = 0.0, detail: str = "") -> None:
        self.state = state
        self._listener(ProcessEvent(self.name, state, self.pid, seconds, detail))


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"it ended with exit status {code}"
    try:
        return f"it was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"it was ended by signal {-code}"
