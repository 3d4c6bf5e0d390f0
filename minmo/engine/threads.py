"""Keeps PyTorch's threads few: on a CPU, one pool of them for each thread that ever computed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_Result = TypeVar("_Result")


def apart(function: Callable[[], _Result]) -> _Result:
    """Runs something in a thread of its own, and waits for it.

    OpenMP keeps a pool of threads for each thread that has computed, as long as that one lives.
    Where all pools together have more threads than there are cores, none spins between two loops
    any more, and waking up from sleep makes a step of many small loops 20 % slower. So whoever
    loads modules for an engine, whose thread computes from then on, does it apart.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="apart") as executor:
        return executor.submit(function).result()
