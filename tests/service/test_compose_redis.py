"""The Redis of the compose file: its command, run here with a real server."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis as client

from minmo.stack import redis
from minmo.stack.ports import PortReservation
from tests.composed import SECRETS, environment, services

START_SECONDS = 20.0


@contextmanager
def server(folder: Path) -> Iterator[client.Redis]:
    """The server, with its folders in `folder`; killed at the end."""
    service = services("cpu")["redis"]
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    binary = programs / "valkey-server"
    if not binary.exists():
        binary.symlink_to(redis.binary())
    data, password = folder / "data", folder / "password.conf"
    data.mkdir(exist_ok=True)
    port = PortReservation()
    here = f"--bind 127.0.0.1 --port {port.port} --dir {data}"
    shell, option, script = service["command"]
    script = script.replace("$$", "$").replace("/tmp/password.conf", str(password))
    assert "--dir /data" in script
    script = script.replace("--dir /data", here)
    process = subprocess.Popen(
        [shell, option, script],
        env={"PATH": f"{programs}:/usr/bin:/bin", **environment(service)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        deadline = time.monotonic() + START_SECONDS
        while "Ready to accept connections" not in process.stdout.readline():
            assert time.monotonic() < deadline
        yield client.Redis(port=port.port, password=SECRETS["REDIS_PASSWORD"])
    finally:
        process.kill()
        process.wait(START_SECONDS)
        port.close()


def test_redis_asks_for_the_password_and_keeps_what_it_has_answered(tmp_path: Path) -> None:
    with server(tmp_path) as connection:
        stranger = client.Redis(port=connection.get_connection_kwargs()["port"])
        with pytest.raises(client.AuthenticationError):
            stranger.ping()
        connection.set("turn", "heard")
    with server(tmp_path) as connection:
        assert connection.get("turn") == b"heard"
    assert (tmp_path / "password.conf").stat().st_mode & 0o777 == 0o600
