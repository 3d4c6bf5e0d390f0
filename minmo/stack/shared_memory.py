"""Shared memory of Triton's Python backend, which stays behind when its processes are killed."""

from __future__ import annotations

import contextlib
from pathlib import Path

_SHARED_MEMORY = Path("/dev/shm")


def prefix(stack_id: str) -> str:
    """How the names of a stack's segments begin."""
    return f"minmo-{stack_id}-"


def remove(stack_id: str) -> None:
    """Removes the segments of a stack whose Triton does not run."""
    for segment in _SHARED_MEMORY.glob(f"{prefix(stack_id)}*"):
        with contextlib.suppress(OSError):
            segment.unlink()
