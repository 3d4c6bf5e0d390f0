"""A stack of small processes in place of the services: its descriptor, its lock, its folders."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

import psutil
import pytest

from minmo.stack import Stack, StackConfig, StackError, descriptor, ready
from minmo.stack import stack as stack_module
from minmo.stack.descriptor import Descriptor
from minmo.stack.plan import Plan
from minmo.stack.ports import PortReservation
from minmo.stack.process import ProcessSpec
from minmo.stack.stack import KEPT_LOGS

DUMMY = Path(__file__).with_name("dummy_service.py")


class DummyPlan(Plan):
    """Two dummies: the orchestrator needs the encoder."""

    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.redis_url = "redis://user:secret@127.0.0.1:1/0"
        self.addresses["encoder"] = f"127.0.0.1:{self.reserve()}"
        self.addresses["orchestrator"] = self.public[1]
        self.targets = dict(self.addresses)
        for name, needs in (("encoder", []), ("orchestrator", ["encoder"])):
            ready_file = self.folder / "ready" / f"{name}.json"
            port = self.addresses[name].rpartition(":")[2]
            command = [sys.executable, "-S", str(DUMMY), str(ready_file), "--port", port]
            self.specs.append(
                ProcessSpec(name, [*command, *self.options], ready.by_file(ready_file), needs=needs)
            )


@pytest.fixture(autouse=True)
def dummies(monkeypatch: pytest.MonkeyPatch) -> type[DummyPlan]:
    monkeypatch.setattr(stack_module, "Plan", DummyPlan)
    return DummyPlan


@pytest.fixture
def config(tmp_path: Path) -> StackConfig:
    return StackConfig(port=0, folder=tmp_path)


async def test_a_running_stack_is_described_and_a_stopped_one_is_not(config: StackConfig) -> None:
    async with Stack(config) as stack:
        found = descriptor.read(config.descriptor_path)
        assert found is not None
        assert found.pid == os.getpid()
        assert found.address == stack.addresses["orchestrator"]
        assert {name: found.services[name].pid for name in stack.names} == stack.pids
        assert "secret" not in config.descriptor_path.read_text()
        pids = list(stack.pids.values())
    assert descriptor.read(config.descriptor_path) is None
    assert not any(psutil.pid_exists(pid) for pid in pids)


async def test_a_process_that_comes_back_is_described_anew(config: StackConfig) -> None:
    async with Stack(config) as stack:
        before = stack.pids["encoder"]
        address = stack.addresses["encoder"]
        await stack.kill("encoder")
        await stack.wait_ready("encoder")
        found = descriptor.read(config.descriptor_path)
        assert found is not None
        assert found.services["encoder"].pid == stack.pids["encoder"] != before
        assert stack.addresses["encoder"] == address


async def test_a_second_stack_in_the_same_folder_is_refused(config: StackConfig) -> None:
    async with Stack(config) as stack:
        with pytest.raises(StackError, match=r"running already at 127\.0\.0\.1:\d+.*--port"):
            async with Stack(config):
                pass
        assert descriptor.read(config.descriptor_path) is not None
        assert len(stack.pids) == 2


async def test_a_stack_on_another_port_stands_beside(config: StackConfig, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    other = StackConfig(port=port, folder=tmp_path)
    async with Stack(config), Stack(other):
        assert len(descriptor.read_all(tmp_path)) == 2
        assert config.redis_folder != other.redis_folder


async def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(StackError, match=f"port {port}.*in use"):
            async with Stack(StackConfig(port=port, folder=tmp_path)):
                pass


async def test_logs_are_what_remains_of_a_stack_and_of_few_stacks(
    config: StackConfig, tmp_path: Path
) -> None:
    for _ in range(KEPT_LOGS + 2):
        async with Stack(config) as stack:
            pass
    folders = [path for path in config.run_folder.iterdir() if path.is_dir()]
    assert len(folders) == KEPT_LOGS
    assert stack.logs.parent in folders
    assert [path.name for path in stack.logs.parent.iterdir()] == ["logs"]
    assert "dummy begins" in (stack.logs / "encoder.log").read_text()


async def test_a_start_that_fails_leaves_nothing(
    config: StackConfig, dummies: type[DummyPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dummies, "options", ("--fail",))
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(StackError, match=r"(?s)encoder did not start.*no such model"):
        async with Stack(config):
            pass
    assert descriptor.read(config.descriptor_path) is None
    assert set(psutil.Process().children(recursive=True)) <= before


async def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(StackError, match=r"cannot write .*home.*MINMO_HOME"):
        async with Stack(StackConfig(port=0, folder=tmp_path / "home")):
            pass


async def test_an_external_redis_that_does_not_answer_is_named(tmp_path: Path) -> None:
    reservation = PortReservation()
    url = f"redis://user:secret@{reservation.address}/0"
    with pytest.raises(StackError, match=r"--redis-url redis://127.*does not answer") as missing:
        async with Stack(StackConfig(port=0, folder=tmp_path, redis_url=url)):
            pass
    reservation.close()
    assert "secret" not in str(missing.value)


async def test_an_unknown_process_is_named(config: StackConfig) -> None:
    async with Stack(config) as stack:
        with pytest.raises(StackError, match=r"no process 'gateway'.*encoder, orchestrator"):
            await stack.kill("gateway")


async def test_another_event_loop_is_refused_rather_than_hung(config: StackConfig) -> None:
    async with Stack(config) as stack:
        with pytest.raises(StackError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, stack.wait_ready("encoder"))


def described(path: Path, **changes: object) -> Path:
    values: dict[str, object] = {
        "stack_id": "a",
        "version": "0",
        "pid": os.getpid(),
        "pid_start": descriptor.process_start(os.getpid()),
        "preset": "mini",
        "mode": "cascade",
        "address": "127.0.0.1:1",
        "redis_url": "redis://127.0.0.1:2/0",
        "logs": "",
        "services": {},
    }
    Descriptor.model_validate(values | changes).write(path)
    return path


def test_a_descriptor_of_a_living_supervisor_counts(tmp_path: Path) -> None:
    assert descriptor.read(described(tmp_path / "stack.json")) is not None
    assert [path.name for path in tmp_path.iterdir()] == ["stack.json"]


def test_a_descriptor_of_a_dead_supervisor_is_ignored(tmp_path: Path) -> None:
    child = psutil.Popen([sys.executable, "-S", "-c", ""])
    child.wait()
    assert descriptor.read(described(tmp_path / "stack.json", pid=child.pid)) is None


def test_a_descriptor_whose_process_id_belongs_to_another_now_is_ignored(tmp_path: Path) -> None:
    assert descriptor.read(described(tmp_path / "stack.json", pid_start=1.0)) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_a_broken_descriptor_is_ignored(tmp_path: Path, content: str) -> None:
    path = tmp_path / "stack.json"
    path.write_text(content)
    assert descriptor.read(path) is None


async def test_a_stack_that_does_not_serve_is_not_talked_with(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    described(tmp_path / "run" / "stack.json", address=address)
    assert await descriptor.running_stack(tmp_path) is None
