"""How many threads each process may compute with, so that all together fit the machine."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

MAX_LLM_THREADS = 8
_CGROUP = Path("/sys/fs/cgroup")
# Every library that may start threads of its own; a process's models use several.
_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def thread_budget(cores: int) -> Mapping[str, int]:
    """Threads of each process of a stack on so many cores.

    The LLM, which Triton hosts, takes most of a turn's time and runs while the others wait for it,
    so it gets all cores up to 8, where a small model gains no more. The others have little to do
    and one thread each: they may run at the same time as the LLM, and threads that wait for one
    another on too few cores cost more than they bring.
    """
    if cores < 1:
        raise ValueError(f"cores is {cores}: there is at least 1")
    return {
        "triton": min(cores, MAX_LLM_THREADS),
        "llm": 1,
        "encoder": 1,
        "voice_decoder": 1,
        "orchestrator": 1,
        "gateway": 1,
    }


def thread_variables(threads: int) -> dict[str, str]:
    """Environment that holds numerical libraries to so many threads."""
    return dict.fromkeys(_VARIABLES, str(threads))


def available_cores(cgroup: Path = _CGROUP) -> int:
    """Cores that this process may use: its affinity, and a container's share where it has one."""
    cores = len(os.sched_getaffinity(0))
    share = _cpu_share(cgroup)
    return cores if share is None else max(1, min(cores, math.ceil(share)))


def _cpu_share(cgroup: Path) -> float | None:
    for quota_file, period_file in (
        ("cpu.max", None),
        ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"),
    ):
        try:
            words = (cgroup / quota_file).read_text().split()
            if period_file is not None:
                words += (cgroup / period_file).read_text().split()
            quota, period = float(words[0]), float(words[1])
        except (OSError, ValueError, IndexError):
            continue
        if quota > 0 and period > 0:
            return quota / period
    return None
