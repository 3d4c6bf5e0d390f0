"""How Redis is reached: one server, or the master that Sentinels name.

A URL is one of::

    redis://[user:password@]host:port/database
    unix://[user:password@]/path?db=database
    redis+sentinel://[user:password@]host:port,host:port/MASTER[/database]

with ``rediss`` in the place of ``redis`` for TLS. User and password are those of the Redis servers;
Sentinels that ask for a password of their own get ``?sentinel_password=`` (and
``sentinel_username=``) of the URL.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import parse_qsl, unquote, urlsplit

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import ExponentialBackoff

SENTINEL_PORT = 26379
SECONDS = 2.0
"""Longest wait for a connection, or for an answer."""

_SENTINEL = re.compile(r"redis(s?)\+sentinel://")
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:\[\]]+)(?::(\d+))?")
_OPTIONS = {"sentinel_username", "sentinel_password"}


@dataclass(frozen=True)
class SentinelUrl:
    """What a URL with Sentinels says.

    Attributes:
        sentinels: host and port of each.
        master: name of the master that they watch.
        database: number in it.
        username: for the Redis servers.
        password: for the Redis servers.
        tls: whether both are reached over TLS.
        options: for the connections to the Sentinels.
    """

    sentinels: tuple[tuple[str, int], ...]
    master: str
    database: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    options: dict[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, url: str) -> Self:
        """Reads a URL. Raises ValueError: what is wrong with it; the text names no password."""
        scheme = _SENTINEL.match(url)
        if scheme is None:
            raise ValueError("it has no Sentinels")
        parts = urlsplit(url)
        credentials, _, hosts = parts.netloc.rpartition("@")
        username, _, password = credentials.partition(":")
        path = parts.path.strip("/").split("/")
        if not path[0] or len(path) > 2 or (len(path) == 2 and not path[1].isdigit()):
            raise ValueError(
                "give the name of the master behind the hosts, as in "
                "redis+sentinel://one:26379,two:26379/mymaster/0"
            )
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        if unknown := options.keys() - _OPTIONS:
            raise ValueError(f"options are {', '.join(sorted(_OPTIONS))}, not {unknown.pop()!r}")
        return cls(
            sentinels=tuple(_address(host) for host in hosts.split(",")),
            master=unquote(path[0]),
            database=int(path[1]) if len(path) == 2 else 0,
            username=unquote(username) or None,
            password=unquote(password) or None,
            tls=bool(scheme[1]),
            options={key.removeprefix("sentinel_"): value for key, value in options.items()},
        )


def has_sentinels(url: str) -> bool:
    """Whether a URL names Sentinels, so that there may be another master tomorrow."""
    return _SENTINEL.match(url) is not None


def check_url(url: str) -> None:
    """Raises ValueError: the URL cannot be used; says why."""
    if has_sentinels(url):
        SentinelUrl.parse(url)
    elif not url.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError(
            "give redis://host:port/database, rediss://... (TLS), unix://path, or "
            "redis+sentinel://host:port,host:port/MASTER/database"
        )


def connect(url: str, *, max_connections: int = 64) -> redis.Redis:
    """A client, which connects when it is used; to be closed with ``aclose``.

    With Sentinels every new connection goes to the master that they name then, and one to a master
    that has become a replica is given up.

    Args:
        url: as above.
        max_connections: open at the same time.
    """
    options: dict[str, Any] = {
        "decode_responses": False,
        "socket_timeout": SECONDS,
        "socket_connect_timeout": SECONDS,
        "health_check_interval": 15,
        "retry": Retry(ExponentialBackoff(cap=0.2, base=0.01), 2),
        "max_connections": max_connections,
    }
    if not has_sentinels(url):
        made: redis.Redis = redis.Redis.from_url(url, **options)
        return made
    found = SentinelUrl.parse(url)
    tls: dict[str, Any] = {"ssl": True} if found.tls else {}
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        list(found.sentinels),
        sentinel_kwargs={
            "socket_timeout": SECONDS,
            "socket_connect_timeout": SECONDS,
            **found.options,
            **tls,
        },
    )
    master: redis.Redis = sentinel.master_for(
        found.master,
        db=found.database,
        username=found.username,
        password=found.password,
        **options,
        **tls,
    )
    return master


async def find_master(client: redis.Redis) -> tuple[str, int] | None:
    """Host and port of the master that the Sentinels name now; None for a client without.

    Idle connections to another one are closed.

    Raises:
        redis.ConnectionError: no Sentinel answers, or knows a master.
    """
    pool = client.connection_pool
    if not isinstance(pool, SentinelConnectionPool):
        return None
    host, port = await pool.get_master_address()  # type: ignore[no-untyped-call]
    return str(host), int(port)


async def check_master(client: redis.Redis) -> None:
    """Closes the connection of a single-connection client that is none to the master any more.

    Raises:
        redis.ConnectionError: that was so.
    """
    master, connection = await find_master(client), client.connection
    if master is None or connection is None:
        return
    host, port = connection.host, connection.port
    if (host, port) != master:
        await connection.disconnect()
        raise redis.ConnectionError(f"{host}:{port} is not the master any more")


def _address(text: str) -> tuple[str, int]:
    match = _HOST.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no host:port of a Sentinel")
    return match[1].strip("[]"), int(match[2] or SENTINEL_PORT)
