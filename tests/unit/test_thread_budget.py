"""How the threads of a machine are shared among the processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from minmo.stack.threads import available_cores, thread_budget, thread_variables


@pytest.mark.parametrize(("cores", "llm"), [(1, 1), (2, 2), (4, 4), (8, 8), (64, 8)])
def test_the_llm_gets_all_cores_up_to_eight_and_the_others_one(cores: int, llm: int) -> None:
    budget = thread_budget(cores)
    assert budget["triton"] == llm
    assert {budget[name] for name in budget if name != "triton"} == {1}


def test_no_cores_is_refused() -> None:
    with pytest.raises(ValueError, match="cores is 0"):
        thread_budget(0)


def test_every_numerical_library_is_told() -> None:
    assert thread_variables(3) == {
        "OMP_NUM_THREADS": "3",
        "MKL_NUM_THREADS": "3",
        "OPENBLAS_NUM_THREADS": "3",
    }


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 1000),
        ({"cpu.max": "max 100000\n"}, 1000),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1000),
    ],
)
def test_a_containers_share_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(1000)))
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    assert available_cores(tmp_path) == cores
