"""What is alike in all processes: how they end, and how they say that they are ready."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import json
import os
import signal
from abc import ABC, abstractmethod
from pathlib import Path

import structlog

from minmo.rpc import http, tracing
from minmo.rpc.health import Readiness
from minmo.settings import ServiceSettings

_EXIT_FAILED = 1

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class StartError(Exception):
    """The process cannot start; the text says why and what to do."""


class Process(ABC):
    """A process from its start to its end, which SIGTERM or SIGINT asks for.

    Args:
        settings: what the process was told.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self._ready_file = settings.ready_file
        self._asked_to_stop = asyncio.Event()

    @abstractmethod
    async def serve(self) -> None:
        """Serves until `_asked_to_stop`, then ends in grace. Raises StartError."""

    async def run(self) -> int:
        """Serves; returns the exit status of the process."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            await self.serve()
        except (StartError, tracing.TracingError) as error:
            log.error("cannot start", reason=str(error))
            return _EXIT_FAILED
        except Exception:
            log.exception("failed")
            return _EXIT_FAILED
        finally:
            tracing.stop()
        return 0

    def _on_signal(self, number: int) -> None:
        if not self._asked_to_stop.is_set():
            self._asked_to_stop.set()
            return
        log.warning("stopping at once: second signal", signal=signal.Signals(number).name)
        remove(self._ready_file)
        # Not an exception: nothing that is stuck may keep the process.
        os._exit(128 + number)


def serve_http(settings: ServiceSettings, readiness: Readiness) -> str:
    """Starts `minmo.rpc.http`, which ends with the process; its address, or "" if it is off."""
    if settings.metrics_port < 0:
        return ""
    try:
        port = http.serve(settings.host, settings.metrics_port, readiness)
    except OSError as error:
        target = join(settings.host, settings.metrics_port)
        advice = port_advice(error, "--metrics-port")
        raise StartError(f"cannot serve metrics on {target}: {advice}") from None
    return join(settings.host, port)


def port_advice(error: OSError, flag: str) -> str:
    """Why a port could not be taken, and what to do."""
    if error.errno == errno.EADDRINUSE:
        return f"the port is in use; stop what uses it, or choose another {flag} (0: a free one)"
    return f"{error.strerror or error}"


def write_ready_file(path: Path | None, name: str, address: str, metrics_address: str) -> None:
    """Tells whoever watches for the file that the process is ready, and where."""
    if path is None:
        return
    report = {
        "name": name,
        "pid": os.getpid(),
        "address": address,
        "metrics_address": metrics_address,
    }
    # Whoever watches for the file must find all of it.
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(report) + "\n")
    unfinished.replace(path)


def remove(path: Path | None) -> None:
    """Removes a ready file, if there is one."""
    if path is not None:
        path.unlink(missing_ok=True)


def join(host: str, port: int) -> str:
    """``host:port``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_local(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
