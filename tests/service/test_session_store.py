"""Sessions in a real Redis-compatible server, which may be killed at any time."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from minmo.rpc.errors import StatusError
from minmo.stack import redis as embedded
from services.orchestrator.store import SessionStore, Settings, StoredTurn

SETTINGS = Settings(system_prompt="Be brief.")


class Server:
    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        self.process = subprocess.Popen(
            embedded.command(self.port, self.folder), stdout=subprocess.DEVNULL
        )

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def store(server: Server) -> AsyncIterator[SessionStore]:
    store = make_store(server)
    yield store
    await store.close()


def make_store(server: Server, *, sessions: int = 3, seconds: float = 10) -> SessionStore:
    return SessionStore(
        server.url, ttl_seconds=100, max_sessions_per_owner=sessions, deadline_seconds=seconds
    )


async def test_a_session_comes_back_as_it_was_written(store: SessionStore) -> None:
    made = await store.create("me", SETTINGS)
    await store.acquire(made.session_id, "stream", take_over=False)
    said = StoredTurn(0, "user", "What is the capital of France?", started=1.5, audio_ms=1200)
    heard = StoredTurn(1, "assistant", "Paris", "Paris, of course.", "interrupted", 2.5, 300)
    await store.put_turn(made.session_id, "stream", heard)
    await store.put_turn(made.session_id, "stream", said)
    found = await store.get(made.session_id, "me")
    assert found.turns == (said, heard)
    assert found.settings == SETTINGS
    assert found.streaming


async def test_a_session_is_its_owners_alone(store: SessionStore) -> None:
    made = await store.create("me", SETTINGS)
    with pytest.raises(StatusError, match="NOT_FOUND"):
        await store.get(made.session_id, "somebody else")
    with pytest.raises(StatusError, match="NOT_FOUND"):
        await store.delete(made.session_id, "somebody else")
    assert await store.page("somebody else", 10, 0) == []


async def test_two_streams_cannot_have_one_session(store: SessionStore) -> None:
    made = await store.create("me", SETTINGS)
    await store.acquire(made.session_id, "first", take_over=False)
    with pytest.raises(StatusError, match="used by another stream"):
        await store.acquire(made.session_id, "second", take_over=False)
    await store.release(made.session_id, "first")
    await store.acquire(made.session_id, "second", take_over=False)


async def test_a_stream_that_was_taken_over_can_write_no_more(store: SessionStore) -> None:
    made = await store.create("me", SETTINGS)
    await store.acquire(made.session_id, "first", take_over=False)
    await store.acquire(made.session_id, "second", take_over=True)
    for write in (
        store.put_turn(made.session_id, "first", StoredTurn(0, "user", "too late")),
        store.drop_turn(made.session_id, "first", 0),
        store.refresh(made.session_id, "first"),
    ):
        with pytest.raises(StatusError, match="taken over"):
            await write
    await store.release(made.session_id, "first")
    await store.refresh(made.session_id, "second")
    assert (await store.get(made.session_id, "me")).turns == ()


async def test_a_deleted_session_is_gone_for_its_stream_too(store: SessionStore) -> None:
    made = await store.create("me", SETTINGS)
    await store.acquire(made.session_id, "stream", take_over=False)
    await store.delete(made.session_id, "me")
    with pytest.raises(StatusError, match="was deleted"):
        await store.next_epoch(made.session_id, "replica")
    with pytest.raises(StatusError, match="was deleted"):
        await store.refresh(made.session_id, "stream")


async def test_an_owner_may_keep_a_limited_number(store: SessionStore) -> None:
    made = [await store.create("me", SETTINGS) for _ in range(3)]
    with pytest.raises(StatusError, match="3 sessions exist already"):
        await store.create("me", SETTINGS)
    await store.create("somebody else", SETTINGS)
    await store.delete(made[0].session_id, "me")
    await store.create("me", SETTINGS)


async def test_a_session_that_was_not_used_for_long_makes_room(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [(await store.create("me", SETTINGS)).session_id for _ in range(3)]
    await store.acquire(made[0], "talks", take_over=False)
    await store.acquire(made[1], "talked", take_over=False)
    await store.put_turn(made[1], "talked", StoredTurn(0, "user", "Hello."))
    await store.release(made[1], "talked")
    monkeypatch.setattr("services.orchestrator.store._UNUSED_SECONDS", 0.0)
    new = (await store.create("me", SETTINGS)).session_id
    # The first is in use, the second was used after the third.
    kept = {session.session_id for session in await store.page("me", 10, 0)}
    assert kept == {made[0], made[1], new}
    with pytest.raises(StatusError, match="NOT_FOUND"):
        await store.get(made[2], "me")


async def test_sessions_in_use_make_no_room(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.orchestrator.store._UNUSED_SECONDS", 0.0)
    for number in range(3):
        made = await store.create("me", SETTINGS)
        await store.acquire(made.session_id, f"stream {number}", take_over=False)
    with pytest.raises(StatusError, match="3 sessions exist already"):
        await store.create("me", SETTINGS)


async def test_expired_sessions_do_not_count(server: Server) -> None:
    store = SessionStore(server.url, ttl_seconds=1, max_sessions_per_owner=1, deadline_seconds=5)
    await store.create("me", SETTINGS)
    async with asyncio.timeout(10):
        while await store.page("me", 10, 0):
            await asyncio.sleep(0.05)
    await store.create("me", SETTINGS)
    await store.close()


async def test_pages_of_sessions_are_newest_first(store: SessionStore) -> None:
    made = [await store.create("me", SETTINGS) for _ in range(3)]
    first = await store.page("me", 2, 0)
    rest = await store.page("me", 2, first[-1].created)
    ids = [session.session_id for session in first + rest]
    assert ids == [session.session_id for session in reversed(made)]


async def test_epochs_grow(store: SessionStore) -> None:
    made = await store.create("me", SETTINGS)
    assert [await store.next_epoch(made.session_id, "replica") for _ in range(3)] == [1, 2, 3]
    assert (await store.get(made.session_id, "me")).llm_replica == "replica"


async def test_embeddings_of_the_open_turn_come_back_in_order(store: SessionStore) -> None:
    words = ""
    made = await store.create("me", SETTINGS)
    for row in (b"one", b"two", b"three"):
        words = f"{words} {row.decode()}".strip()
        await store.push_embeddings(made.session_id, row, words)
    rows = [b"one", b"two", b"three"]
    assert await store.embeddings(made.session_id) == (rows, "one two three")
    await store.clear_embeddings(made.session_id)
    assert await store.embeddings(made.session_id) == ([], "")


async def test_a_killed_redis_has_lost_nothing_when_it_is_back(server: Server) -> None:
    store = make_store(server)
    made = await store.create("me", SETTINGS)
    await store.acquire(made.session_id, "stream", take_over=False)
    turns = [StoredTurn(index, "user", f"turn {index}") for index in range(20)]
    for turn in turns:
        await store.put_turn(made.session_id, "stream", turn)
    server.kill()
    waiting = asyncio.create_task(store.get(made.session_id, "me"))
    await asyncio.sleep(0)
    server.start()
    assert list((await waiting).turns) == turns
    await store.close()


async def test_a_redis_that_stays_away_is_unavailable(server: Server) -> None:
    store = make_store(server, seconds=0.5)
    server.kill()
    with pytest.raises(StatusError, match=r"did not answer within 0\.5 s"):
        await store.create("me", SETTINGS)
    await store.close()
    server.start()
