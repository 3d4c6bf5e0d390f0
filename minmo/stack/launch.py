"""Becomes another program that the kernel kills when the process that started it dies.

Run as a script, without the rest of MinMo: ``python -I -S launch.py PARENT PROGRAM ARGUMENT...``.
A `preexec_fn` would do the same, but is unsafe in a parent that has threads.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_EXIT_NOT_FOUND = 127


def main(parent: int, command: list[str]) -> None:
    """Ties this process's life to `parent`, then becomes `command`; only failures return."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have died before the kernel knew what to do then.
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    # Python ignores these, and what is ignored stays so in the next program.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"cannot start {command[0]}: {error.strerror}", file=sys.stderr)
        raise SystemExit(_EXIT_NOT_FOUND) from None


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
