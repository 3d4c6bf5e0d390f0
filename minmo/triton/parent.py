"""Ends the model's process when the server that started it has died."""

from __future__ import annotations

import faulthandler
import os
import threading

_CHECK_SECONDS = 1.0
_STUCK_SECONDS = 15.0


def end_with_parent() -> None:
    """From now on, this process ends when its parent does, however that dies.

    After a kill -9 of the server Triton's own calls never return, and one that holds Python's lock
    stops all of Python: then the watch of `faulthandler`, which needs no lock, ends the process.
    """
    thread = threading.Thread(target=_watch, args=(os.getppid(),), name="llm-parent", daemon=True)
    thread.start()


def _watch(parent: int) -> None:
    pause = threading.Event()
    while os.getppid() == parent:
        faulthandler.dump_traceback_later(_STUCK_SECONDS, exit=True)
        pause.wait(_CHECK_SECONDS)
    os._exit(1)
