"""The history of a conversation, as this stream works with it and as the store keeps it."""

from __future__ import annotations

import time
from dataclasses import replace

from services.orchestrator import history
from services.orchestrator.items import Item
from services.orchestrator.store import SessionStore, StoredSession, StoredTurn
from services.orchestrator.utterance import Utterance

_PROGRESS_SECONDS = 0.5


class Record:
    """Writes turns; what is written survives this process.

    Args:
        store: of the sessions.
        session: as the store had it when the stream began.
        stream_id: the stream, which holds the session's lease.
        system_prompt: who the assistant is.
    """

    def __init__(
        self, store: SessionStore, session: StoredSession, stream_id: str, system_prompt: str
    ) -> None:
        self._store = store
        self._session_id = session.session_id
        self._stream_id = stream_id
        self._system_prompt = system_prompt
        self._turns = list(session.turns)
        self._saved_at = 0.0

    def __len__(self) -> int:
        """Number of turns."""
        return len(self._turns)

    @property
    def next_index(self) -> int:
        """Number of the next turn."""
        return self._turns[-1].index + 1 if self._turns else 0

    def prompt(self, limit: int, *, before: StoredTurn | None = None) -> list[Item]:
        """What the LLM reads of the history, in at most `limit` positions.

        Args:
            limit: positions.
            before: leaves this turn and all after it out.
        """
        turns = [turn for turn in self._turns if before is None or turn.index < before.index]
        return history.prompt(self._system_prompt, turns, limit=limit)

    async def close_open_answer(self) -> StoredTurn | None:
        """Ends an answer that the stream before left open; returns a question without answer."""
        if self._turns and self._turns[-1].outcome == "open":
            unfinished = self._turns.pop()
            if unfinished.text:
                await self.put(replace(unfinished, outcome="interrupted"))
            else:
                await self.drop(unfinished)
        if self._turns and self._turns[-1].role == "user":
            return self._turns[-1]
        return None

    async def put(self, turn: StoredTurn) -> None:
        """Writes a turn, new or changed. Raises StatusError: ABORTED, UNAVAILABLE."""
        await self._store.put_turn(self._session_id, self._stream_id, turn)
        self._turns = [kept for kept in self._turns if kept.index != turn.index]
        self._turns.append(turn)
        self._turns.sort(key=lambda kept: kept.index)

    async def drop(self, turn: StoredTurn) -> None:
        """Removes a turn of which nothing was heard."""
        await self._store.drop_turn(self._session_id, self._stream_id, turn.index)
        self._turns = [kept for kept in self._turns if kept.index != turn.index]

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
