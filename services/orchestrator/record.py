"""The history of a conversation, as this stream works with it and as the store keeps it."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import replace

from services.orchestrator import history
from services.orchestrator.items import Item
from services.orchestrator.session_settings import Settings
from services.orchestrator.store import SessionStore, StoredSession, StoredTurn
from services.orchestrator.utterance import Utterance

_PROGRESS_SECONDS = 0.5


class Record:
    """Writes turns; what is written survives this process.

    Args:
        store: of the sessions.
        session: as the store had it when the stream began.
        stream_id: the stream, which holds the session's lease.
        system_text: who the assistant is, and what it may call.
    """

    def __init__(
        self, store: SessionStore, session: StoredSession, stream_id: str, system_text: str
    ) -> None:
        self._store = store
        self._session_id = session.session_id
        self._stream_id = stream_id
        self.system_text = system_text
        self._turns = list(session.turns)
        self._reserved: set[int] = set()
        self._saved_at = 0.0

    def __len__(self) -> int:
        """Number of turns."""
        return len(self._turns)

    @property
    def next_index(self) -> int:
        """Number of the next turn."""
        last = self._turns[-1].index if self._turns else -1
        return max(last, *self._reserved) + 1 if self._reserved else last + 1

    @property
    def turns(self) -> tuple[StoredTurn, ...]:
        """All turns, oldest first."""
        return tuple(self._turns)

    def reserve(self, index: int) -> None:
        """Keeps a number for a turn that is under way, until it is written or dropped."""
        self._reserved.add(index)

    def find(self, index: int) -> StoredTurn | None:
        """The turn of this number."""
        return next((turn for turn in self._turns if turn.index == index), None)

    def last_user_turn(self) -> StoredTurn | None:
        """The latest turn of the user."""
        return next((turn for turn in reversed(self._turns) if turn.role == "user"), None)

    def has_call(self, call_id: str) -> bool:
        """Whether there is a call of this id, or its result."""
        return any(turn.call_id == call_id for turn in self._turns)

    def call_without_result(self, call_id: str) -> StoredTurn | None:
        """The call of this id, if its result is not known yet."""
        found = [turn for turn in self._turns if turn.call_id == call_id]
        return found[0] if len(found) == 1 and found[0].is_call else None

    def prompt(
        self, limit: int, *, before: StoredTurn | None = None, system_text: str | None = None
    ) -> list[Item]:
        """What the LLM reads of the history, in at most `limit` positions.

        Args:
            limit: positions.
            before: leaves this turn and all after it out.
            system_text: other instructions than the session's.
        """
        turns = [turn for turn in self._turns if before is None or turn.index < before.index]
        text = self.system_text if system_text is None else system_text
        return history.prompt(text, turns, limit=limit)

    def digest(self) -> str:
        """Tells histories apart, as the LLM reads them."""
        told = [(turn.role, turn.text, turn.outcome, turn.call_arguments) for turn in self._turns]
        return hashlib.sha256(json.dumps([self.system_text, told]).encode()).hexdigest()[:32]

    async def close_open_answer(self) -> StoredTurn | None:
        """Ends an answer that the stream before left open; returns a question without answer.

        A question, or what a tool returned, that waits until the client asks for an answer is none.
        """
        for unfinished in [turn for turn in self._turns if turn.outcome == "open"]:
            if unfinished.text:
                await self.put(replace(unfinished, outcome="interrupted"))
            else:
                await self.drop(unfinished)
        last = self._turns[-1] if self._turns else None
        if last is None or last.waits or last.role not in ("user", "tool"):
            return None
        return last

    async def put(self, turn: StoredTurn) -> None:
        """Writes a turn, new or changed. Raises StatusError: ABORTED, UNAVAILABLE."""
        await self._store.put_turn(self._session_id, self._stream_id, turn)
        self._turns = [kept for kept in self._turns if kept.index != turn.index]
        self._turns.append(turn)
        self._turns.sort(key=lambda kept: kept.index)
        self._reserved.discard(turn.index)

    async def drop(self, turn: StoredTurn) -> None:
        """Removes a turn, also one that was not written yet."""
        await self._store.drop_turn(self._session_id, self._stream_id, turn.index)
        self._turns = [kept for kept in self._turns if kept.index != turn.index]
        self._reserved.discard(turn.index)

    async def put_settings(self, settings: Settings) -> None:
        """Writes the session's settings. Raises StatusError as `put`."""
        await self._store.put_settings(self._session_id, self._stream_id, settings)

    async def save_progress(self, turn: StoredTurn, utterance: Utterance) -> None:
        """Notes what was heard so far, twice a second: this process may die before the end."""
        now = time.monotonic()
        if now - self._saved_at < _PROGRESS_SECONDS:
            return
        self._saved_at = now
        await self._store.put_turn(
            self._session_id, self._stream_id, heard_so_far(turn, utterance, "open")
        )


def heard_so_far(turn: StoredTurn, utterance: Utterance, outcome: str) -> StoredTurn:
    """The assistant's turn with what has been heard of its utterance."""
    return replace(
        turn,
        text=utterance.heard_text,
        generated_text=utterance.text,
        outcome=outcome,
        audio_ms=utterance.audio_ms,
    )
