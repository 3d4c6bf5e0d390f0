"""Kills what a supervisor has started when the supervisor is gone, whatever ended it.

The kernel kills the processes that the supervisor itself started, but not theirs. So this small
program waits at the other end of a pipe: `watch` and `forget` tell it of process groups, and when
the pipe ends without the groups being forgotten, it kills them.

Run as a script, without the rest of MinMo: ``python -I -S guard.py SEGMENTS``, where SEGMENTS is
how the names of shared memory begin that the groups leave behind; "" for none.
"""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

_SHARED_MEMORY = Path("/dev/shm")
_STOP_SECONDS = 5.0


class Guard:
    """The supervisor's side: starts the program, and tells it whom to kill.

    Args:
        segments: how the names of the groups' shared memory begin; "" for none.
    """

    def __init__(self, segments: str = "") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__)), segments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def watch(self, group: int) -> None:
        """Has a process group killed when this process ends."""
        self._tell(f"+{group}\n")

    def forget(self, group: int) -> None:
        """Leaves a process group alone."""
        self._tell(f"-{group}\n")

    def close(self) -> None:
        """Ends the program; groups that were not forgotten are killed."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        # Without its guard a stack still works, and the kernel still kills what it started itself.
        with contextlib.suppress(OSError):
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()


def main(segments: str) -> None:
    """Reads groups until the pipe ends, then kills those that are left."""
    groups: set[int] = set()
    for line in sys.stdin:
        group = int(line[1:])
        (groups.add if line.startswith("+") else groups.discard)(group)
    for group in groups:
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)
    if groups and segments:
        for segment in _SHARED_MEMORY.glob(f"{segments}*"):
            with contextlib.suppress(OSError):
                segment.unlink()


if __name__ == "__main__":
    main(sys.argv[1])
