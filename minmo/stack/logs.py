"""The log of one supervised process: its output in a file of bounded size, its end at hand."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import BinaryIO

MAX_LOG_BYTES = 4 * 1024 * 1024
_TAIL_BYTES = 64 * 1024
_READ_BYTES = 64 * 1024


class ProcessLog:
    """Takes what processes write into a pipe and keeps it in ``PATH`` and ``PATH.1``.

    The pipe outlives the process, so that a restarted one goes on in the same log. A full disk
    loses lines of the file, not the process that wrote them.

    Args:
        path: the file; its folder exists. An older log there is continued.
        max_bytes: size from which the file becomes ``PATH.1`` and a new one begins.
    """

    def __init__(self, path: Path, max_bytes: int = MAX_LOG_BYTES) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._tail = bytearray()
        self._file: BinaryIO | None = path.open("ab", buffering=0)
        self._reader, self.writer = os.pipe()
        os.set_blocking(self._reader, False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._reader, self.drain)

    def drain(self) -> None:
        """Takes what has been written so far."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._reader, _READ_BYTES):
                self._tail += data
                del self._tail[:-_TAIL_BYTES]
                self._write(data)

    def tail(self, lines: int = 20) -> str:
        """The last lines that were written."""
        self.drain()
        text = self._tail.decode(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def close(self) -> None:
        """Takes the rest and closes the file."""
        self.drain()
        self._loop.remove_reader(self._reader)
        os.close(self._reader)
        os.close(self.writer)
        if self._file is not None:
            self._file.close()

    def _write(self, data: bytes) -> None:
        try:
            if self._file is None:
                self._file = self.path.open("ab", buffering=0)
            if self._file.tell() >= self._max_bytes:
                self._file.close()
                self._file = None
                self.path.replace(self.path.with_name(self.path.name + ".1"))
                self._file = self.path.open("ab", buffering=0)
            self._file.write(data)
        except OSError:
            # What failed (a full disk) may pass; the tail in memory has the lines meanwhile.
            return
