"""How a process shows that it is ready: by a file that it writes, or by an answer over HTTP."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from minmo.stack.process import Probe


def by_file(path: Path) -> Probe:
    """Ready once the process has written `path` (``--ready-file``): JSON with its own ``pid``.

    A file that an earlier process left counts for nothing.
    """

    async def ready(pid: int) -> bool:
        return _pid_in(path) == pid

    return ready


def _pid_in(path: Path) -> int | None:
    try:
        return int(json.loads(path.read_text())["pid"])
    except (ValueError, KeyError, TypeError):
        return None


async def http_status(port: int, path: str) -> int:
    """Status that 127.0.0.1 answers to a GET. Raises OSError; 0 is an answer that is not HTTP."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        words = (await reader.readline()).split()
    finally:
        writer.close()
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
