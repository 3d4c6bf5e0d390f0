"""Threads that compute."""

from __future__ import annotations

import subprocess
import sys

import pytest

# In a process of its own: how many threads there are is to depend on nothing else.
_COUNTS = """
import time
import torch
from pathlib import Path
from minmo.engine.threads import apart

def compute():
    return torch.rand(4_000_000).exp().sum()

def threads():
    return len(list(Path("/proc/self/task").iterdir()))

torch.set_num_threads(3)
before = threads()
apart(compute)
# OpenMP's threads end a moment after the one that they worked for.
deadline = time.monotonic() + 10
while threads() > before and time.monotonic() < deadline:
    time.sleep(0.01)
between = threads()
compute()
print(between - before, threads() - between)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads as Linux shows them")
def test_what_computed_apart_leaves_no_threads_behind() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", _COUNTS], check=True, capture_output=True, text=True
    )
    assert shown.stdout.split() == ["0", "2"]
