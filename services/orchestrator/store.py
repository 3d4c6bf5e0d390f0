"""What Redis keeps of a conversation: text, positions, epochs, settings; never audio.

Keys of a session (they expire `ttl_seconds` after its last use):

- ``minmo:session:ID``             hash: owner, settings, times, epoch, replica of the LLM's cache,
  and what is in that where the stream before was moved
- ``minmo:session:ID:turns``       hash: index -> turn as JSON
- ``minmo:session:ID:lease``       the stream that may write, with a short expiry
- ``minmo:session:ID:embeddings``  list: speech embeddings of the user's open turn, short expiry
- ``minmo:session:ID:heard``       the words in them, with the same expiry
- ``minmo:owner:OWNER``            sorted set of the owner's session ids by creation time, which
  outlives them: ids of expired sessions are passed over, and dropped when the set is full

Every write of a conversation names its stream and is refused by a script when another stream holds
the lease, so a stream that was taken over cannot write into the history any more. A lease that ran
out while nobody took it (a stalled process) refuses nothing.

Where Sentinels name the master, what must not be lost waits until a replica has it as well, since a
master that dies takes along what it had not passed on: a turn that the client was told of, who has
the session, its epoch. While no replica has it, the Sentinels are asked: if another master has
taken over, it is written there; if there is none for two seconds, this one is trusted for a while
without a replica, as a single Redis is.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

import grpc
import redis.asyncio as redis
import structlog
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ConnectionError,
    MaxConnectionsError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
)

from minmo.rpc import metrics, redis_client, tracing
from minmo.rpc.errors import aborted, not_found, resource_exhausted, unavailable
from services.orchestrator.session_settings import Settings

Result = TypeVar("Result")

log = structlog.get_logger()

LEASE_SECONDS = 5.0
EMBEDDINGS_SECONDS = 180
_RETRY_SECONDS = 0.1
_ENDING_SECONDS = 2.0
# Sentinels need about a second to know the new master, once there is one.
_REPLICATION_SECONDS = 2.0
_REPLICATION_STEP_MS = 100
_ALONE_SECONDS = 5.0
# Of an owner's sessions, the oldest that are looked at for one to forget, and how long it must
# have been unused: one that was just made may be about to be used.
_OLDEST = 50
_UNUSED_SECONDS = 60.0
_PROBE_KEY = "minmo:probe"
_PROBE_SECONDS = 60
# What a server says while another one takes its place, or while its disk is full.
_PASSING = ("NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "MISCONF")

# KEYS: lease, session, turns. ARGV: stream, ttl, now, index, turn.
_PUT_TURN = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
if redis.call('EXISTS', KEYS[2]) == 0 then return -1 end
redis.call('HSET', KEYS[3], ARGV[4], ARGV[5])
redis.call('HSET', KEYS[2], 'updated', ARGV[3])
redis.call('EXPIRE', KEYS[2], ARGV[2])
redis.call('EXPIRE', KEYS[3], ARGV[2])
return 1
"""
# KEYS: lease, session, turns. ARGV: stream, index.
_DROP_TURN = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
if redis.call('EXISTS', KEYS[2]) == 0 then return -1 end
redis.call('HDEL', KEYS[3], ARGV[2])
return 1
"""
# KEYS: lease, session. ARGV: stream, now, settings.
_PUT_SETTINGS = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
if redis.call('EXISTS', KEYS[2]) == 0 then return -1 end
redis.call('HSET', KEYS[2], 'updated', ARGV[2], 'settings', ARGV[3])
return 1
"""
# KEYS: lease, session, turns. ARGV: stream, lease in ms, ttl.
_REFRESH = """
if redis.call('EXISTS', KEYS[2]) == 0 then return -1 end
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[3])
redis.call('EXPIRE', KEYS[3], ARGV[3])
return 1
"""
# KEYS: session. ARGV: replica. A deleted session must not come back as a stump.
_NEXT_EPOCH = """
if redis.call('EXISTS', KEYS[1]) == 0 then return -1 end
redis.call('HSET', KEYS[1], 'llm_replica', ARGV[1])
return redis.call('HINCRBY', KEYS[1], 'epoch', 1)
"""
# KEYS: lease, session. ARGV: stream, cache.
_PUT_CACHE = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
if redis.call('EXISTS', KEYS[2]) == 0 then return -1 end
redis.call('HSET', KEYS[2], 'cache', ARGV[2])
return 1
"""
# KEYS: lease, owner's sessions, then all else of the session. ARGV: session. One that somebody
# talks in is not forgotten.
_FORGET = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
for place = 3, #KEYS do redis.call('DEL', KEYS[place]) end
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
"""
_RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1
"""


@dataclass(frozen=True)
class StoredTurn:
    """A turn as the history has it.

    Attributes:
        index: number in the session.
        role: ``user``, ``assistant``, ``system`` or ``tool``.
        text: what was said; for the assistant what was *heard*; what a tool returned.
        generated_text: the assistant's whole text.
        outcome: ``open`` while it goes on, then ``completed``, ``interrupted`` or ``failed``.
        started: seconds since the epoch.
        audio_ms: spoken by the user or heard from the assistant.
        waits: the user's turn, or a tool's, is not answered until the client asks for it.
        wishes: how the answer that was asked for is to differ, as `Wishes` writes it; empty: in
            nothing.
        call_id: of the tool call that it is, or whose result it is; empty for other turns.
        call_name: the tool.
        call_arguments: a JSON object; of the call alone.
        utterance_id: the answer that the call is part of.
    """

    index: int
    role: str
    text: str
    generated_text: str = ""
    outcome: str = "completed"
    started: float = 0.0
    audio_ms: int = 0
    waits: bool = False
    wishes: str = ""
    call_id: str = ""
    call_name: str = ""
    call_arguments: str = ""
    utterance_id: str = ""

    @property
    def is_call(self) -> bool:
        """Whether it is a call of a tool."""
        return self.role == "assistant" and bool(self.call_id)


@dataclass(frozen=True)
class Cache:
    """What the LLM has read of a session whose stream has left it for the next one.

    Attributes:
        replica_id: which replica has it; it is new with every start.
        branch: where.
        position: how far.
        digest: of the history that was read.
    """

    replica_id: str
    branch: str
    position: int
    digest: str


@dataclass(frozen=True)
class StoredSession:
    """A session as Redis has it."""

    session_id: str
    owner: str
    settings: Settings
    created: float
    updated: float
    expires: float
    epoch: int = 0
    llm_replica: str = ""
    cache: Cache | None = None
    streaming: bool = False
    turn_count: int = 0
    turns: tuple[StoredTurn, ...] = field(default=())


class SessionStore:
    """Sessions in Redis.

    Calls wait up to `deadline_seconds` for a Redis that restarts, or for another master, then raise
    UNAVAILABLE.

    Args:
        url: of Redis, see `minmo.rpc.redis_client`.
        ttl_seconds: how long a session is kept after its last use.
        max_sessions_per_owner: how many one owner may keep.
        deadline_seconds: as said above.
    """

    def __init__(
        self, url: str, *, ttl_seconds: int, max_sessions_per_owner: int, deadline_seconds: float
    ) -> None:
        self._ttl = ttl_seconds
        self._max_sessions = max_sessions_per_owner
        self._deadline = deadline_seconds
        self._redis = redis_client.connect(url)
        self._replicated = redis_client.has_sentinels(url)
        self._alone = False
        self._asks_replica_at = 0.0
        self._put_turn = self._redis.register_script(_PUT_TURN)
        self._drop_turn = self._redis.register_script(_DROP_TURN)
        self._put_settings = self._redis.register_script(_PUT_SETTINGS)
        self._refresh = self._redis.register_script(_REFRESH)
        self._next_epoch = self._redis.register_script(_NEXT_EPOCH)
        self._release = self._redis.register_script(_RELEASE)
        self._put_cache = self._redis.register_script(_PUT_CACHE)
        self._forget = self._redis.register_script(_FORGET)

    async def close(self) -> None:
        """Closes the connections."""
        await self._redis.aclose()

    async def probe(self) -> str:
        """What stands in the way of writing a turn now; "" if nothing does. Does not wait."""
        try:
            with _measured("probe"):
                # With Sentinels this drops connections to a master that is none any more.
                await redis_client.find_master(self._redis)
                await self._redis.set(_PROBE_KEY, b"", ex=_PROBE_SECONDS)
        except (RedisError, OSError) as error:
            return _problem(error)
        return ""

    async def clock(self) -> float:
        """Seconds since the epoch, as Redis has it. Raises RedisError, OSError."""
        with _measured("probe"):
            seconds, microseconds = await self._redis.time()
        return float(seconds) + microseconds / 1e6

    # --- sessions

    async def create(self, owner: str, settings: Settings) -> StoredSession:
        """Makes a session; an owner's that was not used for long makes room for it.

        Raises RESOURCE_EXHAUSTED if the owner has too many and uses them all.
        """
        now = time.time()
        session_id = "s" + secrets.token_hex(12)
        session = StoredSession(session_id, owner, settings, now, now, now + self._ttl)
        owner_key = _owner_key(owner)

        async def work(client: redis.Redis) -> None:
            count = await client.zcard(owner_key)
            if count >= self._max_sessions:
                count -= await self._forget_expired(client, owner_key)
            if count >= self._max_sessions and not await self._make_room(client, owner_key):
                raise resource_exhausted(
                    f"{count} sessions exist already, and all are in use or were used within "
                    f"{_UNUSED_SECONDS:g} s; delete one with DeleteSession",
                    limit=f"{self._max_sessions} sessions per token",
                    reason="TOO_MANY_SESSIONS",
                )
            pipeline = client.pipeline(transaction=True)
            pipeline.hset(
                _session_key(session_id),
                mapping={
                    "owner": owner,
                    "settings": settings.to_json(),
                    "created": repr(now),
                    "updated": repr(now),
                    "epoch": 0,
                },
            )
            pipeline.expire(_session_key(session_id), self._ttl)
            pipeline.zadd(owner_key, {session_id: now})
            await pipeline.execute()

        await self._call("create", work, durable=True)
        return session

    async def get(self, session_id: str, owner: str) -> StoredSession:
        """A session with its turns. NOT_FOUND if there is none or it is another owner's."""

        async def work(
            client: redis.Redis,
        ) -> tuple[dict[bytes, bytes], dict[bytes, bytes], int, int]:
            pipeline = client.pipeline(transaction=True)
            pipeline.hgetall(_session_key(session_id))
            pipeline.hgetall(_turns_key(session_id))
            pipeline.exists(_lease_key(session_id))
            pipeline.ttl(_session_key(session_id))
            fields, turns, leased, ttl = await pipeline.execute()
            return fields, turns, leased, ttl

        fields, raw_turns, leased, ttl = await self._call("get", work)
        if not fields or fields[b"owner"].decode() != owner:
            raise not_found(
                f"session {session_id[:64]!r} does not exist (it may have expired after "
                f"{self._ttl} s without use); make one with CreateSession",
                reason="SESSION_NOT_FOUND",
            )
        turns = sorted(
            (StoredTurn(**json.loads(value)) for value in raw_turns.values()),
            key=lambda turn: turn.index,
        )
        return replace(
            _session(session_id, fields, expires=time.time() + max(ttl, 0)),
            streaming=bool(leased),
            turn_count=len(turns),
            turns=tuple(turns),
        )

    async def page(self, owner: str, limit: int, before: float) -> list[StoredSession]:
        """Up to `limit` of the owner's sessions made before `before` (seconds), newest first."""

        async def work(client: redis.Redis) -> list[StoredSession]:
            found: list[StoredSession] = []
            upper: str | float = f"({before!r}" if before else "+inf"
            offset = 0
            while len(found) < limit:
                ids: Any = await client.zrevrangebyscore(
                    _owner_key(owner), upper, "-inf", start=offset, num=limit
                )
                if not ids:
                    break
                offset += len(ids)
                pipeline = client.pipeline(transaction=False)
                for session_id in ids:
                    pipeline.hgetall(_session_key(session_id.decode()))
                    pipeline.hlen(_turns_key(session_id.decode()))
                    pipeline.exists(_lease_key(session_id.decode()))
                    pipeline.ttl(_session_key(session_id.decode()))
                values = await pipeline.execute()
                for place, session_id in enumerate(ids):
                    fields, count, leased, ttl = values[4 * place : 4 * place + 4]
                    if fields:
                        expires = time.time() + max(ttl, 0)
                        session = _session(session_id.decode(), fields, expires=expires)
                        found.append(replace(session, turn_count=count, streaming=bool(leased)))
            return found[:limit]

        return await self._call("page", work)

    async def delete(self, session_id: str, owner: str) -> None:
        """Forgets a session. NOT_FOUND as in `get`."""
        await self.get(session_id, owner)

        async def work(client: redis.Redis) -> None:
            pipeline = client.pipeline(transaction=True)
            pipeline.delete(_lease_key(session_id), *_keys_of(session_id))
            pipeline.zrem(_owner_key(owner), session_id)
            await pipeline.execute()

        await self._call("delete", work, durable=True)

    # --- the stream that has the session

    async def acquire(self, session_id: str, stream_id: str, *, take_over: bool) -> None:
        """Takes the lease. ABORTED if another stream keeps it and `take_over` is false.

        A stream that is just ending is waited for, up to 2 s.
        """

        async def work(client: redis.Redis) -> bool:
            taken = await client.set(
                _lease_key(session_id),
                stream_id,
                px=int(LEASE_SECONDS * 1000),
                nx=not take_over,
            )
            return bool(taken)

        give_up = time.monotonic() + _ENDING_SECONDS
        while not await self._call("acquire", work, durable=True):
            if time.monotonic() < give_up:
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            raise aborted(
                f"session {session_id} is used by another stream; end that one, or set take_over",
                reason="SESSION_BUSY",
            )

    async def refresh(self, session_id: str, stream_id: str) -> None:
        """Keeps the lease and the session alive. ABORTED once the lease is another stream's."""
        code = await self._call(
            "refresh",
            lambda client: self._refresh(
                keys=[_lease_key(session_id), _session_key(session_id), _turns_key(session_id)],
                args=[stream_id, int(LEASE_SECONDS * 1000), self._ttl],
                client=client,
            ),
        )
        _check(code, session_id)

    async def release(self, session_id: str, stream_id: str) -> None:
        """Gives the lease back, if it is still this stream's."""
        await self._call(
            "release",
            lambda client: self._release(
                keys=[_lease_key(session_id)], args=[stream_id], client=client
            ),
        )

    # --- writes of the conversation

    async def put_turn(self, session_id: str, stream_id: str, turn: StoredTurn) -> None:
        """Writes a turn, new or changed. ABORTED if the stream has lost the session."""
        code = await self._call(
            "put_turn",
            lambda client: self._put_turn(
                keys=[_lease_key(session_id), _session_key(session_id), _turns_key(session_id)],
                args=[
                    stream_id,
                    self._ttl,
                    repr(time.time()),
                    turn.index,
                    json.dumps(asdict(turn)),
                ],
                client=client,
            ),
            durable=True,
        )
        _check(code, session_id)

    async def put_settings(self, session_id: str, stream_id: str, settings: Settings) -> None:
        """Writes other settings. ABORTED as in `put_turn`."""
        code = await self._call(
            "put_settings",
            lambda client: self._put_settings(
                keys=[_lease_key(session_id), _session_key(session_id)],
                args=[stream_id, repr(time.time()), settings.to_json()],
                client=client,
            ),
            durable=True,
        )
        _check(code, session_id)

    async def drop_turn(self, session_id: str, stream_id: str, index: int) -> None:
        """Removes a turn. ABORTED as in `put_turn`."""
        code = await self._call(
            "drop_turn",
            lambda client: self._drop_turn(
                keys=[_lease_key(session_id), _session_key(session_id), _turns_key(session_id)],
                args=[stream_id, index],
                client=client,
            ),
            durable=True,
        )
        _check(code, session_id)

    async def next_epoch(self, session_id: str, llm_replica: str) -> int:
        """Counts the epoch up and notes which replica of the LLM is about to hold the cache.

        ABORTED if the session was deleted.
        """

        epoch = await self._call(
            "next_epoch",
            lambda client: self._next_epoch(
                keys=[_session_key(session_id)], args=[llm_replica], client=client
            ),
            durable=True,
        )
        _check(epoch, session_id)
        return int(epoch)

    async def put_cache(self, session_id: str, stream_id: str, cache: Cache) -> None:
        """Writes what the LLM has read, for the next stream. ABORTED as in `put_turn`."""
        code = await self._call(
            "put_cache",
            lambda client: self._put_cache(
                keys=[_lease_key(session_id), _session_key(session_id)],
                args=[stream_id, json.dumps(asdict(cache))],
                client=client,
            ),
        )
        _check(code, session_id)

    async def push_embeddings(self, session_id: str, rows: bytes, words: str) -> None:
        """Appends speech embeddings of the user's open turn; they expire soon.

        Args:
            session_id: the session.
            rows: the embeddings.
            words: what is said in them and all before them.
        """

        async def work(client: redis.Redis) -> None:
            pipeline = client.pipeline(transaction=False)
            pipeline.rpush(_embeddings_key(session_id), rows)
            pipeline.expire(_embeddings_key(session_id), EMBEDDINGS_SECONDS)
            pipeline.set(_heard_key(session_id), words.encode(), ex=EMBEDDINGS_SECONDS)
            await pipeline.execute()

        await self._call("push_embeddings", work)

    async def embeddings(self, session_id: str) -> tuple[list[bytes], str]:
        """Speech embeddings of the turn that was open when the last stream ended, and its words."""

        async def work(client: redis.Redis) -> tuple[list[bytes], str]:
            pipeline = client.pipeline(transaction=True)
            pipeline.lrange(_embeddings_key(session_id), 0, -1)
            pipeline.get(_heard_key(session_id))
            rows, words = await pipeline.execute()
            return list(rows), (words or b"").decode()

        return await self._call("embeddings", work)

    async def clear_embeddings(self, session_id: str) -> None:
        """Forgets the speech embeddings: their turn has its text."""
        await self._call(
            "clear_embeddings",
            lambda client: client.delete(_embeddings_key(session_id), _heard_key(session_id)),
        )

    # --- helpers

    async def _forget_expired(self, client: redis.Redis, owner_key: str) -> int:
        ids: Any = await client.zrange(owner_key, 0, -1)
        pipeline = client.pipeline(transaction=False)
        for session_id in ids:
            pipeline.exists(_session_key(session_id.decode()))
        present = await pipeline.execute()
        gone = [session_id for session_id, alive in zip(ids, present, strict=True) if not alive]
        if gone:
            await client.zrem(owner_key, *gone)
        return len(gone)

    async def _make_room(self, client: redis.Redis, owner_key: str) -> bool:
        """Forgets, of the owner's oldest sessions, the one that was used longest ago."""
        ids: Any = await client.zrange(owner_key, 0, _OLDEST - 1)
        pipeline = client.pipeline(transaction=False)
        for session_id in ids:
            pipeline.hget(_session_key(session_id.decode()), "updated")
        used = await pipeline.execute()
        before = time.time() - _UNUSED_SECONDS
        unused = sorted(
            (float(updated or 0), session_id.decode())
            for session_id, updated in zip(ids, used, strict=True)
            if float(updated or 0) < before
        )
        for _, session_id in unused:
            keys = [_lease_key(session_id), owner_key, *_keys_of(session_id)]
            if await self._forget(keys=keys, args=[session_id], client=client):
                log.info("an unused session made room for another", session=session_id)
                return True
        return False

    async def _call(
        self,
        operation: metrics.RedisCall,
        work: Callable[[redis.Redis], Awaitable[Result]],
        *,
        durable: bool = False,
    ) -> Result:
        """Does `work`, again and again until it succeeds or the deadline has passed.

        Args:
            operation: what it is called in the metrics.
            work: gets a client.
            durable: whether it must outlast the master.
        """
        give_up = time.monotonic() + self._deadline
        while True:
            try:
                with _measured(operation), tracing.span(f"redis.{operation}", kind="client"):
                    if durable and self._replicated:
                        return await self._replicate(work)
                    return await work(self._redis)
            except (RedisError, OSError) as error:
                if not _may_pass(error):
                    raise unavailable(
                        f"the session store refused {operation}: {error}", reason="STORE_REFUSED"
                    ) from error
                if time.monotonic() + _RETRY_SECONDS > give_up:
                    raise unavailable(
                        f"the session store did not answer within {self._deadline:g} s: "
                        f"{_problem(error)}",
                        reason="STORE_UNAVAILABLE",
                        retry_after_seconds=1,
                    ) from None
            await asyncio.sleep(_RETRY_SECONDS)

    async def _replicate(self, work: Callable[[redis.Redis], Awaitable[Result]]) -> Result:
        """Does `work` and waits, not for long, until a replica has what it wrote.

        Raises:
            ConnectionError: it was not written to the master.
        """
        # Redis waits for what was written over the same connection.
        async with self._redis.client() as client:
            result = await work(client)
            began = time.monotonic()
            if began < self._asks_replica_at:
                return result
            patience = 0.0 if self._alone else _REPLICATION_SECONDS
            while not await client.wait(1, _REPLICATION_STEP_MS):
                await redis_client.check_master(client)
                now = time.monotonic()
                if now >= began + patience:
                    if not self._alone:
                        log.warning("no replica of Redis has a write", seconds=patience)
                    self._alone, self._asks_replica_at = True, now + _ALONE_SECONDS
                    return result
            self._alone = False
        return result


def _may_pass(error: Exception) -> bool:
    """Whether trying again can help: Redis is away, full, or about to be another one."""
    if isinstance(error, ResponseError):
        passing = (ReadOnlyError, OutOfMemoryError)
        return isinstance(error, passing) or str(error).startswith(_PASSING)
    return isinstance(error, (ConnectionError, TimeoutError, BusyLoadingError, OSError))


def _problem(error: Exception) -> str:
    """What a failure says of Redis."""
    match error:
        case AuthenticationError():
            return f"Redis refuses the password: {error}"
        case MaxConnectionsError():
            return f"too many calls to Redis at once: {error}"
        case ResponseError():
            return f"Redis refuses writes: {error}"
        case _:
            return f"Redis does not answer: {error}"


@contextmanager
def _measured(operation: metrics.RedisCall) -> Iterator[None]:
    """Times one try of an operation, and counts its failure."""
    began = time.perf_counter()
    try:
        yield
    except (RedisError, OSError) as error:
        metrics.count_hop_error("redis", _code_of(error))
        raise
    finally:
        metrics.HOP_REDIS.labels(operation).observe(time.perf_counter() - began)


def _code_of(error: Exception) -> grpc.StatusCode:
    """The status that says best what Redis, or the way to it, lacks."""
    match error:
        case TimeoutError():
            return grpc.StatusCode.DEADLINE_EXCEEDED
        case AuthenticationError():
            return grpc.StatusCode.UNAUTHENTICATED
        case ConnectionError() | OSError():
            return grpc.StatusCode.UNAVAILABLE
        case _:
            return grpc.StatusCode.FAILED_PRECONDITION


def _check(code: Any, session_id: str) -> None:
    if code == 0:
        raise aborted(
            f"session {session_id} was taken over by another stream", reason="SESSION_TAKEN_OVER"
        )
    if code == -1:
        raise aborted(f"session {session_id} was deleted", reason="SESSION_DELETED")


def _session(session_id: str, fields: dict[bytes, bytes], *, expires: float) -> StoredSession:
    return StoredSession(
        session_id=session_id,
        owner=fields[b"owner"].decode(),
        settings=Settings.from_json(fields[b"settings"]),
        created=float(fields[b"created"]),
        updated=float(fields[b"updated"]),
        expires=expires,
        epoch=int(fields.get(b"epoch", b"0")),
        llm_replica=fields.get(b"llm_replica", b"").decode(),
        cache=Cache(**json.loads(fields[b"cache"])) if b"cache" in fields else None,
    )


def _session_key(session_id: str) -> str:
    return f"minmo:session:{session_id}"


def _turns_key(session_id: str) -> str:
    return f"minmo:session:{session_id}:turns"


def _lease_key(session_id: str) -> str:
    return f"minmo:session:{session_id}:lease"


def _embeddings_key(session_id: str) -> str:
    return f"minmo:session:{session_id}:embeddings"


def _heard_key(session_id: str) -> str:
    return f"minmo:session:{session_id}:heard"


def _keys_of(session_id: str) -> tuple[str, ...]:
    """All that is kept of a session, but for the lease."""
    of = (_session_key, _turns_key, _embeddings_key, _heard_key)
    return tuple(key(session_id) for key in of)


def _owner_key(owner: str) -> str:
    return f"minmo:owner:{owner}"
