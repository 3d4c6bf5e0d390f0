"""The supervisor, with small processes of the standard library in place of the services."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest

from minmo.stack import ready
from minmo.stack.backoff import Backoff
from minmo.stack.errors import StackError
from minmo.stack.ports import PortReservation
from minmo.stack.process import ProcessEvent, ProcessSpec, State
from minmo.stack.supervisor import Supervisor

DUMMY = Path(__file__).with_name("dummy_service.py")
ROOT = Path(__file__).parent.parent.parent
PARENT = Path(__file__).with_name("supervising_parent.py")


@pytest.fixture
def spec(tmp_path: Path) -> Callable[..., ProcessSpec]:
    def make(
        name: str,
        *options: str,
        needs: Sequence[str] = (),
        ready_seconds: float = 20,
        held_back: bool = False,
    ) -> ProcessSpec:
        ready_file = tmp_path / f"{name}.json"
        return ProcessSpec(
            name=name,
            command=[sys.executable, "-S", str(DUMMY), str(ready_file), "--name", name, *options],
            ready=ready.by_file(ready_file),
            needs=needs,
            ready_seconds=ready_seconds,
            held_back=held_back,
        )

    return make


def report(tmp_path: Path, name: str) -> dict[str, int]:
    value: dict[str, int] = json.loads((tmp_path / f"{name}.json").read_text())
    return value


def is_over(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_process_is_ready_when_it_says_so_and_is_gone_after_stop(spec, tmp_path) -> None:
    events: list[ProcessEvent] = []
    supervisor = Supervisor([spec("one")], tmp_path, listener=events.append)
    await supervisor.start()
    pid = report(tmp_path, "one")["pid"]
    assert supervisor.processes["one"].pid == pid
    assert psutil.pid_exists(pid)
    await supervisor.stop()
    assert not psutil.pid_exists(pid)
    assert [event.state for event in events] == [State.STARTING, State.READY, State.STOPPED]


async def test_what_is_held_back_starts_when_it_is_asked_for_after_what_it_needs(
    spec, tmp_path
) -> None:
    events: list[ProcessEvent] = []
    specs = [
        spec("one"),
        spec("three", needs=["two"], held_back=True),
        spec("two", held_back=True),
    ]
    supervisor = Supervisor(specs, tmp_path, listener=events.append)
    await supervisor.start()
    assert {name for name, process in supervisor.processes.items() if process.pid} == {"one"}
    await supervisor.add("three")
    ready = [event.name for event in events if event.state is State.READY]
    assert ready == ["one", "two", "three"]
    pids = [report(tmp_path, name)["pid"] for name in ready]
    await supervisor.stop()
    assert not any(psutil.pid_exists(pid) for pid in pids)


async def test_what_was_held_back_to_the_end_is_stopped_without_having_started(
    spec, tmp_path
) -> None:
    supervisor = Supervisor([spec("one"), spec("two", held_back=True)], tmp_path)
    await supervisor.start()
    await supervisor.stop()
    assert supervisor.processes["two"].state is State.STOPPED
    assert not (tmp_path / "two.json").exists()


async def test_a_start_that_fails_shows_the_end_of_the_log(spec, tmp_path) -> None:
    supervisor = Supervisor([spec("one", "--fail")], tmp_path)
    with pytest.raises(StackError, match=r"(?s)one did not start.*status 3.*no such model: tiny"):
        await supervisor.start()
    await supervisor.stop()
    assert "no such model: tiny" in (tmp_path / "one.log").read_text()


async def test_a_program_that_is_not_there_is_named(tmp_path) -> None:
    missing = ProcessSpec("one", ["/no/such/program"], ready.by_file(tmp_path / "never"))
    supervisor = Supervisor([missing], tmp_path)
    with pytest.raises(StackError, match=r"(?s)127.*cannot start /no/such/program: No such file"):
        await supervisor.start()
    await supervisor.stop()


async def test_a_process_that_is_never_ready_is_ended_at_its_deadline(spec, tmp_path) -> None:
    supervisor = Supervisor([spec("one", "--never-ready", ready_seconds=0.5)], tmp_path)
    with pytest.raises(StackError, match=r"not ready after 0\.5 s"):
        await supervisor.start()
    assert supervisor.processes["one"].pid is None
    await supervisor.stop()


async def test_a_killed_process_comes_back_on_the_same_port(spec, tmp_path) -> None:
    reservation = PortReservation()
    supervisor = Supervisor([spec("one", "--port", str(reservation.port))], tmp_path)
    await supervisor.start()
    first = report(tmp_path, "one")
    await supervisor.processes["one"].kill()
    assert not psutil.pid_exists(first["pid"])
    await supervisor.processes["one"].wait_ready(10)
    second = report(tmp_path, "one")
    await supervisor.stop()
    reservation.close()
    assert second["pid"] != first["pid"]
    assert second["port"] == first["port"] == reservation.port


async def test_what_a_killed_process_had_started_is_ended_too(spec, tmp_path) -> None:
    supervisor = Supervisor([spec("one", "--descendant")], tmp_path)
    await supervisor.start()
    descendant = psutil.Process(report(tmp_path, "one")["descendant"])
    await supervisor.processes["one"].kill()
    await until(lambda: is_over(descendant))
    await supervisor.stop()


async def test_a_process_that_keeps_dying_is_given_up(spec, tmp_path) -> None:
    marker = tmp_path / "started"
    events: list[ProcessEvent] = []
    supervisor = Supervisor(
        [spec("one", "--fail-after-first", str(marker))],
        tmp_path,
        backoff=lambda: Backoff(first_seconds=0.01, limit_seconds=0.02, max_deaths=3),
        listener=events.append,
    )
    await supervisor.start()
    await supervisor.processes["one"].kill()
    failure = await asyncio.wait_for(supervisor.failed(), 20)
    assert "one died 3 times within 60 s" in str(failure)
    assert "dummy begins" in str(failure)
    with pytest.raises(StackError, match="died 3 times"):
        await supervisor.processes["one"].wait_ready(1)
    await supervisor.stop()
    assert [event.seconds for event in events if event.state is State.DEAD] == [0.01, 0.02]


async def test_a_process_held_down_starts_when_it_is_let(spec, tmp_path) -> None:
    supervisor = Supervisor([spec("one")], tmp_path, backoff=lambda: Backoff(first_seconds=0.01))
    await supervisor.start()
    process = supervisor.processes["one"]
    await process.kill(restart=False)
    with pytest.raises(StackError, match="not ready after"):
        await process.wait_ready(0.3)
    process.resume()
    await process.wait_ready(10)
    await supervisor.stop()


async def test_processes_start_after_what_they_need_and_stop_before_it(spec, tmp_path) -> None:
    journal = tmp_path / "journal"
    events: list[ProcessEvent] = []
    options = ("--journal", str(journal))
    supervisor = Supervisor(
        [
            spec("top", *options, needs=["middle", "side"]),
            spec("middle", *options, needs=["bottom"]),
            spec("side", *options),
            spec("bottom", *options),
        ],
        tmp_path,
        listener=events.append,
    )
    await supervisor.start()
    await supervisor.stop()
    happened = [(event.name, event.state) for event in events]
    assert happened.index(("bottom", State.READY)) < happened.index(("middle", State.STARTING))
    assert happened.index(("side", State.STARTING)) < happened.index(("bottom", State.READY))
    assert happened.index(("side", State.READY)) < happened.index(("top", State.STARTING))
    ends = journal.read_text().split()
    assert sorted(ends) == ["bottom", "middle", "side", "top"]
    assert ends[0] == "top"
    assert ends.index("middle") < ends.index("bottom")


async def test_a_process_that_ignores_sigterm_is_killed_at_the_deadline(spec, tmp_path) -> None:
    supervisor = Supervisor([spec("one", "--stubborn")], tmp_path)
    await supervisor.start()
    pid = report(tmp_path, "one")["pid"]
    began = time.monotonic()
    await supervisor.stop(deadline_seconds=0.5)
    assert not psutil.pid_exists(pid)
    assert 0.4 < time.monotonic() - began < 3


async def test_stopping_can_be_cut_short(spec, tmp_path) -> None:
    supervisor = Supervisor([spec("one", "--stubborn")], tmp_path)
    await supervisor.start()
    pid = report(tmp_path, "one")["pid"]
    stopping = asyncio.create_task(supervisor.stop(deadline_seconds=60))
    await asyncio.sleep(0)
    supervisor.kill_now()
    await asyncio.wait_for(stopping, 3)
    assert not psutil.pid_exists(pid)


async def test_stopping_during_the_start_leaves_nothing(spec, tmp_path) -> None:
    supervisor = Supervisor([spec("one", "--never-ready"), spec("two", needs=["one"])], tmp_path)
    starting = asyncio.create_task(supervisor.start())
    await until(lambda: supervisor.processes["one"].pid is not None)
    pid = supervisor.processes["one"].pid
    starting.cancel()
    await supervisor.stop()
    assert pid is not None
    assert not psutil.pid_exists(pid)
    assert supervisor.processes["two"].starts == 0


async def start_parent(tmp_path: Path, *options: str) -> asyncio.subprocess.Process:
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        str(PARENT),
        str(tmp_path),
        *options,
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert parent.stdout is not None
    assert await asyncio.wait_for(parent.stdout.readline(), 30) == b"ready\n"
    return parent


async def test_no_process_survives_a_parent_that_is_killed(tmp_path) -> None:
    parent = await start_parent(tmp_path, "--descendant")
    child = psutil.Process(report(tmp_path, "one")["pid"])
    descendant = psutil.Process(report(tmp_path, "one")["descendant"])
    parent.kill()
    await parent.wait()
    await until(lambda: is_over(child) and is_over(descendant))


async def test_ctrl_c_stops_everything(tmp_path) -> None:
    parent = await start_parent(tmp_path)
    child = report(tmp_path, "one")["pid"]
    parent.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(parent.wait(), 10) == 130
    assert not psutil.pid_exists(child)


async def test_a_second_ctrl_c_kills_at_once(tmp_path) -> None:
    parent = await start_parent(tmp_path, "--stubborn")
    child = report(tmp_path, "one")["pid"]
    parent.send_signal(signal.SIGINT)
    assert parent.stdout is not None
    assert await asyncio.wait_for(parent.stdout.readline(), 10) == b"stopping\n"
    assert psutil.pid_exists(child)
    parent.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(parent.wait(), 3) == 130
    assert not psutil.pid_exists(child)


def test_a_reserved_port_is_nobody_elses() -> None:
    reservation = PortReservation()
    with pytest.raises(ConnectionRefusedError):
        os.close(connect(reservation.port))
    server = listen(reservation.port)
    with pytest.raises(StackError, match=rf"port {reservation.port}.*in use.*--port"):
        PortReservation(port=reservation.port)
    server.close()
    reservation.close()


def connect(port: int) -> int:
    import socket

    return socket.create_connection(("127.0.0.1", port), timeout=2).detach()


def listen(port: int):
    import socket

    return socket.create_server(("127.0.0.1", port))
