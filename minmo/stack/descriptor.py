"""How other programs find the stack that runs on this machine: a file beside its data."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from minmo.stack.config import DEFAULT_INSTANCE, StackConfig
from minmo.stack.errors import StackError

_HEALTH_SECONDS = 3.0
# The clock of process starts has steps of 10 ms, and is read by both sides in the same way.
_SAME_START_SECONDS = 0.05


class ServiceDescription(BaseModel):
    """One process of a stack."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    pid: int | None
    """None: runs elsewhere, is being started (again), or is held back."""
    address: str
    """``host:port``."""
    metrics: str | None = None
    """URL of its Prometheus metrics."""
    log: str | None = None
    """File of its log."""


class Descriptor(BaseModel):
    """A running stack."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    stack_id: str
    version: str
    pid: int
    """The supervisor."""
    pid_start: float
    """When the supervisor began, in seconds since 1970: tells it from a later process."""
    preset: str
    mode: str
    address: str
    """``host:port`` of the public API, or a gRPC list of its replicas."""
    tls: bool = False
    """The public API is reached with TLS."""
    token: bool = False
    """The public API wants a token."""
    redis_url: str
    logs: str
    """Folder of the logs."""
    services: dict[str, ServiceDescription]

    def write(self, path: Path) -> None:
        """Replaces `path` in one step: a reader sees the old one or this. Raises OSError."""
        handle, name = tempfile.mkstemp(prefix=path.name, dir=path.parent)
        unfinished = Path(name)
        try:
            with os.fdopen(handle, "w") as file:
                file.write(self.model_dump_json(indent=2) + "\n")
            unfinished.replace(path)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise

    def supervisor_runs(self) -> bool:
        """Whether the supervisor that wrote this is still there."""
        try:
            return abs(process_start(self.pid) - self.pid_start) <= _SAME_START_SECONDS
        except psutil.Error:
            return False


def process_start(pid: int) -> float:
    """When a process began, in seconds since 1970. Raises psutil.Error if there is none."""
    process = psutil.Process(pid)
    if process.status() == psutil.STATUS_ZOMBIE:
        raise psutil.NoSuchProcess(pid)
    return process.create_time()


def read(path: Path) -> Descriptor | None:
    """The descriptor in a file; None if there is none, or it is stale or not readable as one.

    Raises:
        StackError: the file may not be read.
    """
    try:
        descriptor = Descriptor.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    except OSError as error:
        raise StackError(f"cannot read {path}: {error.strerror}") from None
    return descriptor if descriptor.supervisor_runs() else None


def read_all(folder: Path | None = None) -> list[Descriptor]:
    """Descriptors of all stacks whose supervisor is there, the default instance first.

    Args:
        folder: MinMo's home if None.
    """
    config = StackConfig() if folder is None else StackConfig(folder=folder)
    paths = sorted(config.run_folder.glob("*.json"))
    paths.sort(key=lambda path: path.stem != DEFAULT_INSTANCE)
    return [found for path in paths if (found := read(path)) is not None]


async def running_stack(
    folder: Path | None = None,
    *,
    tls_ca: Path | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
) -> Descriptor | None:
    """The stack to talk with: the first whose public API says that it serves; None if none does.

    Args:
        folder: MinMo's home if None.
        tls_ca: PEM file of the CA to trust, for a stack with TLS.
        tls_cert: PEM file of the certificate to show, for a stack that wants one.
        tls_key: PEM file of its private key.
    """
    from minmo.rpc import client
    from minmo.rpc.errors import StatusError

    for descriptor in read_all(folder):
        if descriptor.tls and tls_ca is None:
            raise StackError(
                f"the stack at {descriptor.address} speaks TLS: give the CA of its certificate "
                "with --tls-ca"
            )
        try:
            await client.wait_ready(
                descriptor.address,
                deadline_seconds=_HEALTH_SECONDS,
                tls_ca=tls_ca if descriptor.tls else None,
                tls_cert=tls_cert if descriptor.tls else None,
                tls_key=tls_key if descriptor.tls else None,
            )
        except StatusError:
            continue
        return descriptor
    return None
