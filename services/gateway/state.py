"""All that a connection knows between two events: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from minmo.v1.conversation_pb2 import ConverseReady, ConverseRequest
from services.gateway.answer import Answer, Event, Status
from services.gateway.codecs import Format
from services.gateway.errors import EventError
from services.gateway.items import Item, Items
from services.gateway.playout import Playout
from services.gateway.session import SessionConfig

MAX_PENDING = 64
"""Requests of a client that may wait for the orchestrator's answer."""

Asked = Literal["settings", "commit", "clear", "item", "delete", "response"]


@dataclass(frozen=True)
class Pending:
    """A request whose answer has not come.

    Attributes:
        asked: what was asked for.
        event_id: of the client's event.
        item: that is to be made or removed.
        config: settings that are to be in force.
        response_id: of the answer that was asked for.
    """

    asked: Asked
    event_id: str | None
    item: Item | None = None
    config: SessionConfig | None = None
    response_id: str = ""


@dataclass(frozen=True)
class Recording:
    """An item's audio whose words are to be recognised before it is added.

    Attributes:
        data: as it came.
        audio_format: of it.
        param: of the client's event, where it stands.
        item: what it will be.
        event_id: of the client's event.
    """

    data: bytes
    audio_format: Format
    param: str
    item: Item
    event_id: str | None


@dataclass
class Outcome:
    """What follows from an event.

    Attributes:
        events: for the client, in order.
        requests: for the orchestrator, in order.
        recording: is to be recognised next.
        reopen: audio formats have changed: the stream must be opened anew.
    """

    events: list[Event] = field(default_factory=list)
    requests: list[ConverseRequest] = field(default_factory=list)
    recording: Recording | None = None
    reopen: bool = False


@dataclass
class State:
    """A connection's.

    Attributes:
        session_id: of the connection, as the protocol has it.
        expires_at: when it will be closed, in seconds since 1970.
        playout: what the client is sent of the assistant's audio, in the present stream.
        config: settings in force.
        wanted: settings that will be in force when all requests are answered.
        stream_open: whether the orchestrator has a stream of this connection.
        ready: the stream's beginning.
        items: of the conversation.
        next_turn: number that the next turn probably gets.
        offset_ms: audio of the user in the streams before this one.
        has_heard: whether the client has sent audio.
        pending: by the id of the request.
        answer: the response that is open.
        held_back: the request for that response, where it waits until the last one was heard.
        unheard: utterance that is made or played, "" before it is known; None when nothing is.
        stopped: utterances that the client was told to play no more of.
        user_item: id that the turn which the user speaks gets.
        partial: text of that turn which the client has.
        committed: turns of the user whose words have not come, oldest first.
        speech_start_ms: where the turn began that the user speaks.
        speech_ms: where speech over an answer began, until it is known what it means.
    """

    session_id: str
    expires_at: int
    playout: Playout
    config: SessionConfig = field(default_factory=SessionConfig)
    wanted: SessionConfig = field(default_factory=SessionConfig)
    stream_open: bool = False
    ready: ConverseReady | None = None
    items: Items = field(default_factory=Items)
    next_turn: int = 0
    offset_ms: int = 0
    has_heard: bool = False
    pending: dict[str, Pending] = field(default_factory=dict)
    answer: Answer | None = None
    held_back: ConverseRequest | None = None
    unheard: str | None = None
    stopped: set[str] = field(default_factory=set)
    user_item: str = ""
    partial: str = ""
    committed: list[Item] = field(default_factory=list)
    speech_start_ms: int = 0
    speech_ms: int | None = None
    _number: int = 0

    def number(self) -> int:
        """A number that was not given before."""
        self._number += 1
        return self._number

    def ask(self, request: ConverseRequest, pending: Pending) -> ConverseRequest:
        """Remembers a request until it is answered. Raises `EventError` if too many are not."""
        if len(self.pending) >= MAX_PENDING:
            raise EventError(
                "too_many_pending_events",
                f"{MAX_PENDING} events of this connection wait for an answer: wait for some.",
                event_id=pending.event_id,
            )
        request.request_id = f"r{self.number()}"
        self.pending[request.request_id] = pending
        return request

    def saw_turn(self, index: int) -> None:
        """A turn has this number."""
        self.next_turn = max(self.next_turn, index + 1)

    def begin_answer(self, request_id: str = "") -> list[Event]:
        """Opens the response of an answer that comes.

        The one before has ended by then, or was asked for and has not begun: then this one was
        first, and the other is refused.
        """
        events = []
        if self.answer is not None and self.answer.utterance_id:
            events += self.end("completed")
        elif self.answer is not None:
            self.pending.pop(self.answer.request_id, None)
            events += self.end("cancelled", reason="turn_detected")
        self.answer = self.new_answer(request_id=request_id)
        return [*events, *self.answer.created()]

    def new_answer(
        self,
        *,
        request_id: str,
        metadata: Mapping[str, str] | None = None,
        text_only: bool | None = None,
        max_tokens: int | None = None,
    ) -> Answer:
        """A response; None takes what the session says."""
        limit = self.config.max_output_tokens
        return Answer(
            f"resp_{self.session_id[-8:]}_{self.number()}",
            self.config,
            self.items,
            metadata=metadata,
            text_only=self.config.text_only if text_only is None else text_only,
            max_tokens=(0 if limit == "inf" else limit) if max_tokens is None else max_tokens,
            request_id=request_id,
        )

    def end(self, status: Status, **details: Any) -> list[Event]:
        """Ends the open response, if there is one."""
        answer, self.answer, self.held_back = self.answer, None, None
        return [] if answer is None else answer.done(status, **details)

    def cancel(self) -> list[Event]:
        """Ends the open response, which was stopped."""
        by_client = self.answer is not None and self.answer.cancelled_by_client
        return self.end("cancelled", reason="client_cancelled" if by_client else "turn_detected")

    def session_event(self, kind: Literal["session.created", "session.updated"]) -> Event:
        """The settings, for the client."""
        session = self.config.to_object(self.session_id, self.expires_at)
        return {"type": kind, "session": session}

    def ready_event(self) -> Event:
        """The extension's `minmo.ready`; there is a stream."""
        assert self.ready is not None, "the stream has begun"
        return {
            "type": "minmo.ready",
            "session_id": self.ready.session_id,
            "resumed": self.ready.resumed,
            "turn_count": self.ready.turn_count,
            "mode": self.ready.mode,
            "voices": list(self.ready.voices),
            "recording": self.ready.keeps_audio,
        }

    def add_item(self, item: Item) -> list[Event]:
        """The conversation has a new item, which is complete."""
        before = self.items.add(item)
        made: dict[str, Any] = item.to_object()
        return [
            {"type": f"conversation.item.{what}", "previous_item_id": before, "item": made}
            for what in ("added", "done")
        ]

    def remove_item(self, item_id: str) -> list[Event]:
        """The conversation has lost an item."""
        self.items.remove(item_id)
        return [{"type": "conversation.item.deleted", "item_id": item_id}]
