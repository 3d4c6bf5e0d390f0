"""All of MinMo on this machine: Redis, Triton and the services, started, supervised and stopped."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from minmo.rpc.metrics import minmo_version
from minmo.stack import descriptor, redis, scrape, shared_memory
from minmo.stack.config import DEFAULT_INSTANCE, DEFAULT_PORT, DEFAULT_WEB_PORT, StackConfig
from minmo.stack.errors import StackError
from minmo.stack.plan import Plan
from minmo.stack.ports import PortReservation
from minmo.stack.process import ProcessEvent, State, SupervisedProcess
from minmo.stack.replicas import kind_of
from minmo.stack.supervisor import STOP_SECONDS, Supervisor

KEPT_LOGS = 5
"""Stacks that have ended whose logs are kept."""

_LOCK = "lock"

Listener = Callable[[ProcessEvent], None]


class Stack:
    """The processes of one machine, as an asynchronous context manager::

        async with Stack(StackConfig(port=0)) as stack:
            channel = client.channel(stack.addresses["orchestrator"])
            await stack.kill("llm")
            await stack.wait_ready("llm")

    On entry all are ready; afterwards nothing of them is left but data and logs. A process that
    dies is started again on the same port. Use it on the event loop of the main thread.

    Args:
        config: what it is to be.
        listener: hears of each change of a process, at once.
    """

    def __init__(
        self, config: StackConfig | None = None, *, listener: Listener = lambda _: None
    ) -> None:
        self.config = config or StackConfig()
        self._listener = listener
        self._resources = ExitStack()
        self._folder: Path | None = None
        self._plan: Plan | None = None
        self._supervisor: Supervisor | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._published = False

    @property
    def addresses(self) -> dict[str, str]:
        """``host:port`` of each process: orchestrator, gateway, encoder, llm, voice_decoder, triton
        and redis; of further replicas too, as in llm-2 and its triton-2."""
        return dict(self._planned.addresses)

    @property
    def targets(self) -> dict[str, str]:
        """Where clients find each service: its address, or a gRPC list of its replicas'."""
        return dict(self._planned.targets)

    @property
    def metrics_urls(self) -> dict[str, str]:
        """URLs of the processes' Prometheus metrics, by name."""
        return dict(self._planned.metrics_urls)

    @property
    def redis_url(self) -> str:
        """URL of the Redis that holds the sessions."""
        return self._planned.redis_url

    @property
    def pids(self) -> dict[str, int]:
        """Ids of the processes that run now, by name."""
        return {
            name: process.pid
            for name, process in self._supervised.processes.items()
            if process.pid is not None
        }

    @property
    def names(self) -> list[str]:
        """Names of the processes."""
        return list(self._supervised.processes)

    @property
    def logs(self) -> Path:
        """Folder of the logs, ``NAME.log`` and ``NAME.log.1``."""
        if self._folder is None:
            raise StackError("the stack has not been started")
        return self._folder / "logs"

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Starts all processes; returns when all are ready. Call `stop`, also when this raises.

        Raises:
            StackError: what stands in the way, with the end of the log of a process that failed.
        """
        self._loop = asyncio.get_running_loop()
        try:
            self._folder = self._make_folders()
            if self.config.redis_url is not None:
                await redis.check_external(self.config.redis_url)
            self._plan = Plan(
                self.config,
                self._folder,
                self._reserve,
                self._reserve_open(self.config.port, DEFAULT_PORT, "--port"),
                self._reserve_open(self.config.web_port, DEFAULT_WEB_PORT, "--web-port")
                if self.config.gateway
                else None,
            )
            self._supervisor = Supervisor(
                self._plan.specs,
                self._folder / "logs",
                segments=shared_memory.prefix(self._folder.name),
                listener=self._on_event,
            )
        except OSError as error:
            raise self._unwritable(error) from None
        await self._supervisor.start()
        try:
            if self.config.prometheus is not None:
                other = self.config.instance.removeprefix(DEFAULT_INSTANCE).removeprefix("-")
                prefix = f"{other}/" if other else ""
                scrape.write(self.config.prometheus, self.metrics_urls, prefix)
            self.describe().write(self.config.descriptor_path)
        except OSError as error:
            raise self._unwritable(error) from None
        self._published = True

    async def stop(self, deadline_seconds: float = STOP_SECONDS) -> None:
        """Stops all processes, those that need others first; twice is fine.

        Args:
            deadline_seconds: what still runs then is killed.
        """
        if self._published:
            self._published = False
            self.config.descriptor_path.unlink(missing_ok=True)
            if self.config.prometheus is not None:
                self.config.prometheus.unlink(missing_ok=True)
        if self._supervisor is not None:
            await self._supervisor.stop(deadline_seconds)
            self._supervisor = None
        with contextlib.suppress(OSError):
            self._tidy()
        self._resources.close()

    def kill_now(self) -> None:
        """Kills all processes; a `stop` that is under way then ends at once."""
        if self._supervisor is not None:
            self._supervisor.kill_now()

    async def failed(self) -> StackError:
        """Waits until a process has died too often to be started again; returns why."""
        return await self._supervised.failed()

    async def kill(
        self, name: str, number: signal.Signals = signal.SIGKILL, *, restart: bool = True
    ) -> None:
        """Ends a process as an accident would, and waits until it is gone.

        It is then started again, unless `restart` is False: then that waits for `resume`.
        """
        self._check_loop()
        await self._process(name).kill(number, restart=restart)

    def resume(self, name: str) -> None:
        """Lets a process that was killed with ``restart=False`` start again."""
        self._process(name).resume()

    async def add(self, service: str) -> str:
        """Starts a replica of a service that was held back; returns its name when it is ready.

        Raises:
            StackError: none is held back any more, or it does not start.
        """
        self._check_loop()
        for process in self._supervised.processes.values():
            if kind_of(process.name) == service and process.state is State.NEW:
                await self._supervised.add(process.name)
                return process.name
        raise StackError(f"no replica of {service} is held back any more")

    def signal(self, name: str, number: signal.Signals) -> None:
        """Sends a signal to a process (SIGSTOP and SIGCONT make one that hangs)."""
        self._process(name).send_signal(number)

    async def wait_ready(self, name: str, deadline_seconds: float = 60.0) -> None:
        """Waits until a process is ready (again).

        Raises:
            StackError: it will not be, or the deadline passed.
        """
        self._check_loop()
        await self._process(name).wait_ready(deadline_seconds)

    def log_tail(self, name: str, lines: int = 20) -> str:
        """The last lines that a process wrote."""
        return self._process(name).log.tail(lines)

    def describe(self) -> descriptor.Descriptor:
        """The stack as other programs see it."""
        pids = self.pids
        return descriptor.Descriptor(
            stack_id=self.logs.parent.name,
            version=minmo_version(),
            pid=os.getpid(),
            pid_start=descriptor.process_start(os.getpid()),
            preset=self.config.preset,
            mode=self._planned.mode,
            address=self.targets["orchestrator"],
            tls=self.config.tls_cert is not None,
            token=self.config.token is not None,
            redis_url=redis.without_password(self.redis_url),
            logs=str(self.logs),
            services={
                name: descriptor.ServiceDescription(
                    pid=pids.get(name),
                    address=address,
                    metrics=self.metrics_urls.get(name),
                    log=str(self.logs / f"{name}.log") if name in self.names else None,
                )
                for name, address in self.addresses.items()
            },
        )

    @property
    def _planned(self) -> Plan:
        if self._plan is None:
            raise StackError("the stack has not been started")
        return self._plan

    @property
    def _supervised(self) -> Supervisor:
        if self._supervisor is None:
            raise StackError("the stack does not run")
        return self._supervisor

    def _check_loop(self) -> None:
        """On another loop one would wait for what cannot happen meanwhile."""
        if asyncio.get_running_loop() is not self._loop:
            raise StackError("the stack is supervised by another event loop: use it there")

    def _process(self, name: str) -> SupervisedProcess:
        processes = self._supervised.processes
        if name not in processes:
            raise StackError(f"there is no process {name!r}; there are: {', '.join(processes)}")
        return processes[name]

    def _on_event(self, event: ProcessEvent) -> None:
        # A disk that is full or a terminal that is gone must not end the supervision.
        with contextlib.suppress(OSError):
            if self._published and event.state in (State.READY, State.DEAD):
                self.describe().write(self.config.descriptor_path)
            self._listener(event)

    def _unwritable(self, error: OSError) -> StackError:
        return StackError(
            f"cannot write {error.filename or self.config.folder}: {error.strerror or error}; "
            "make room or give rights there, or let MINMO_HOME name another folder"
        )

    def _make_folders(self) -> Path:
        """Makes this the only supervisor of its instance, and gives it a folder of its own."""
        run = self.config.run_folder
        run.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock(self.config.lock_path)
        self.config.redis_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        stamp = time.strftime("%Y%m%d-%H%M%S-")
        folder = Path(tempfile.mkdtemp(prefix=stamp, dir=run))
        self._lock(folder / _LOCK)
        for name in ("logs", "ready"):
            (folder / name).mkdir()
        return folder

    def _lock(self, path: Path) -> None:
        """Holds a lock until `stop`, or until this process ends."""
        lock = self._resources.enter_context(path.open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StackError(self._who_is_there()) from None

    def _who_is_there(self) -> str:
        there = descriptor.read(self.config.descriptor_path)
        if there is None:
            return "another stack is starting or stopping in this folder: try again in a moment"
        return (
            f"a stack is running already at {there.address} (process {there.pid}): use it "
            "(`minmo talk` finds it), stop it with Ctrl-C, or start another with --port"
        )

    def _reserve(self) -> int:
        reservation = PortReservation()
        self._resources.callback(reservation.close)
        return reservation.port

    def _reserve_open(self, port: int | None, default: int, flag: str) -> tuple[int, str]:
        """A port that the world may reach: the one that is wanted, or the default if it is free."""
        host = self.config.host
        try:
            reservation = PortReservation(host, default if port is None else port, flag=flag)
        except StackError:
            if port is not None:
                raise
            reservation = PortReservation(host, 0)
        self._resources.callback(reservation.close)
        return reservation.port, reservation.address

    def _tidy(self) -> None:
        """Leaves of this stack its logs, and of the stacks before it the logs of a few."""
        if self._folder is None:
            return
        over = sorted(
            path
            for path in self.config.run_folder.iterdir()
            if path.is_dir() and (path == self._folder or not _is_locked(path / _LOCK))
        )
        for path in over:
            shared_memory.remove(path.name)
        for path in over[:-KEPT_LOGS]:
            shutil.rmtree(path, ignore_errors=True)
        shutil.rmtree(self._folder / "ready", ignore_errors=True)
        (self._folder / _LOCK).unlink(missing_ok=True)


def _is_locked(path: Path) -> bool:
    try:
        with path.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
