"""A stack tells Prometheus where its metrics are, while it runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minmo.stack import Stack, StackConfig
from minmo.stack import stack as stack_module
from minmo.stack.errors import StackError
from tests.unit.test_stack import DummyPlan

URLS = {
    "voice_decoder": "http://127.0.0.1:9001/metrics",
    "llm-2": "http://127.0.0.1:9002/metrics",
}
GROUPS = [
    {
        "targets": ["127.0.0.1:9001"],
        "labels": {"job": "voice-decoder", "instance": "voice_decoder"},
    },
    {"targets": ["127.0.0.1:9002"], "labels": {"job": "llm", "instance": "llm-2"}},
]


class MeasuredPlan(DummyPlan):
    """Dummies with metrics."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.metrics_urls |= URLS


@pytest.fixture(autouse=True)
def dummies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack_module, "Plan", MeasuredPlan)


async def test_its_processes_are_targets_until_it_stops(tmp_path: Path) -> None:
    path = tmp_path / "targets" / "minmo.json"
    path.parent.mkdir()
    async with Stack(StackConfig(port=0, folder=tmp_path, prometheus=path)):
        assert json.loads(path.read_text()) == GROUPS
    assert list(path.parent.iterdir()) == []


async def test_a_second_stack_has_instances_of_its_own(tmp_path: Path, free_port: int) -> None:
    path = tmp_path / "minmo.json"
    async with Stack(StackConfig(port=free_port, folder=tmp_path, prometheus=path)):
        instances = [group["labels"]["instance"] for group in json.loads(path.read_text())]
    assert instances == [f"{free_port}/voice_decoder", f"{free_port}/llm-2"]


async def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "minmo.json"
    with pytest.raises(StackError, match="nowhere"):
        async with Stack(StackConfig(port=0, folder=tmp_path, prometheus=path)):
            pass


@pytest.fixture
def free_port() -> int:
    from minmo.stack.ports import PortReservation

    reservation = PortReservation()
    reservation.close()
    return reservation.port
