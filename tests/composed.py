"""The compose files, as Docker Compose reads them."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import debian

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
FILES = {"cpu": ("compose.yaml",), "gpu": ("compose.yaml", "compose.gpu.yaml")}
SECRETS: Mapping[str, str] = {
    "MINMO_TOKEN": "of-users",
    "MINMO_INTERNAL_TOKEN": "of-services",
    "REDIS_PASSWORD": "of-redis",
    "GRAFANA_PASSWORD": "of-grafana",
}
_SECONDS = 60


@cache
def program() -> tuple[str, ...]:
    """Docker Compose: `docker compose`, or `docker-compose` in PATH, or Debian's, installed now
    where this is root. No engine is needed. Skips the test if there is none.
    """
    if shutil.which("docker"):
        asked = ("docker", "compose", "version")
        if subprocess.run(asked, check=False, capture_output=True).returncode == 0:
            return asked[:-1]
    found = debian.program(["docker-compose"], "docker-compose")
    if found is None:
        pytest.skip("needs Docker Compose: on Debian, apt-get install docker-compose")
    return (str(found),)


def run(kind: str, variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """What `config` says of the files of a kind of host, with these variables alone."""
    files = [argument for name in FILES[kind] for argument in ("-f", str(DEPLOY / name))]
    with tempfile.NamedTemporaryFile("w", suffix=".env") as file:
        file.writelines(f"{name}={value}\n" for name, value in variables.items())
        file.flush()
        return subprocess.run(
            [*program(), "--env-file", file.name, *files, "config"],
            check=False,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"},
        )


@cache
def services(kind: str) -> dict[str, dict[str, Any]]:
    """The services of a kind of host by name, with everything filled in."""
    done = run(kind, SECRETS)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = yaml.safe_load(done.stdout)["services"]
    return found


def environment(service: Mapping[str, Any]) -> dict[str, str]:
    """The variables that a service's container gets from compose."""
    given = service.get("environment") or {}
    pairs = given.items() if isinstance(given, dict) else (pair.split("=", 1) for pair in given)
    # A dollar is written twice.
    return {name: str(value).replace("$$", "$") for name, value in pairs if value is not None}


@dataclass(frozen=True)
class Mount:
    """A volume or a folder of the host in a container."""

    source: str
    target: str
    read_only: bool


def mounts(service: Mapping[str, Any]) -> list[Mount]:
    """What a service's container has of volumes and of the host."""
    return [
        Mount(volume["source"], volume["target"], volume.get("read_only", False))
        if isinstance(volume, dict)
        else Mount(*volume.split(":")[:2], volume.endswith(":ro"))
        for volume in service.get("volumes") or ()
    ]


def published(service: Mapping[str, Any]) -> set[str]:
    """The ports of the host that lead to a service, as ``address:port:port``."""
    return {
        f"{port['host_ip']}:{port['published']}:{port['target']}"
        if isinstance(port, dict)
        else str(port).removesuffix("/tcp")
        for port in service.get("ports") or ()
    }
