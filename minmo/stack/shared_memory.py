"""Shared memory of Triton's Python backend, which stays behind when its processes are killed."""

from __future__ import annotations

import contextlib
from pathlib import Path

_SHARED_MEMORY = Path("/dev/shm")


def prefix(stack_id: str, process: str = "") -> str:
    """How the names of a stack's segments begin, or of one of its processes'."""
    return f"minmo-{stack_id}-{process}." if process else f"minmo-{stack_id}-"


def remove(stack_id: str, process: str = "") -> None:
    """Removes the segments of a stack, or of one of its processes, that does not run."""
    for segment in _SHARED_MEMORY.glob(f"{prefix(stack_id, process)}*"):
        with contextlib.suppress(OSError):
            segment.unlink()
