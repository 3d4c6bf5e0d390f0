"""A gateway's connection without sockets: its state, and both translations."""

from __future__ import annotations

import json
from typing import Any

from minmo.v1 import conversation_pb2
from minmo.v1.conversation_pb2 import ConverseRequest, ConverseResponse, TurnEventKind
from services.gateway.from_client import FromClient
from services.gateway.from_server import FromServer
from services.gateway.parsing import parse
from services.gateway.playout import Playout
from services.gateway.session import SessionConfig
from services.gateway.state import Outcome, State

SECOND = bytes(48_000)
READY = conversation_pb2.ConverseReady(session_id="s1", mode="cascade")


class Dialogue:
    """Says what either side says, and keeps what follows from it."""

    def __init__(self, *, minmo: bool = False, ready: bool = True, **session: Any) -> None:
        config = SessionConfig(minmo=minmo)
        self.state = State("sess_12345678", 0, Playout(24_000, 5.0), config, config)
        self.from_client = FromClient(self.state)
        self.from_server = FromServer(self.state)
        self.now = 100.0
        self.events: list[dict[str, Any]] = []
        self.requests: list[ConverseRequest] = []
        if session:
            self.client("session.update", session=session)
        if ready:
            self.server(ready=READY)
        self.take()

    def client(self, kind: str, **fields: Any) -> Outcome:
        """An event of the client. Raises EventError."""
        event = parse(json.dumps({"type": kind, **fields}))
        return self._keep(self.from_client.translate(event))

    def server(self, request_id: str = "", **message: Any) -> Outcome:
        """A response of the orchestrator, and what is due of its audio."""
        response = ConverseResponse(request_id=request_id, **message)
        outcome = self._keep(self.from_server.translate(response, self.now))
        self.play()
        return outcome

    def play(self, seconds: float = 0.0) -> None:
        """Time passes; audio that is due is sent."""
        self.now += seconds
        for audio in self.state.playout.due(self.now):
            self.events += self.from_server.audio_due(audio)

    def happens(self, name: str, audio_ms: int = 0, request_id: str = "", **fields: Any) -> None:
        """An event of the conversation."""
        kind = TurnEventKind.Value(f"TURN_EVENT_KIND_{name.upper()}")
        event = conversation_pb2.TurnEvent(kind=kind, audio_ms=audio_ms, **fields)
        self.server(request_id, event=event)

    def user_says(self, text: str, turn: int, *, final: bool = True, request_id: str = "") -> None:
        """Words of the user."""
        said = conversation_pb2.UserText(turn_index=turn, text=text, final=final)
        self.server(request_id, user_text=said)

    def assistant_says(
        self, *tokens: str, utterance: str = "u1", first: int = 0, request_id: str = ""
    ) -> None:
        """Tokens of an answer."""
        for place, text in enumerate(tokens, first):
            said = conversation_pb2.AssistantText(
                utterance_id=utterance, token_index=place, text=text
            )
            self.server(request_id, assistant_text=said)

    def sound(
        self,
        data: bytes = SECOND,
        *,
        first: int = 0,
        utterance: str = "u1",
        final: bool = False,
        request_id: str = "",
    ) -> None:
        """Audio of an answer."""
        audio = conversation_pb2.AudioOutput(
            utterance_id=utterance, first_sample=first, data=data, final=final
        )
        self.server(request_id, audio=audio)

    def stop(self, utterance: str = "u1") -> None:
        """The orchestrator stops an answer."""
        self.server(stop_playback=conversation_pb2.StopPlayback(utterance_id=utterance))

    def report(
        self,
        outcome: str = "completed",
        utterance: str = "u1",
        request_id: str = "",
        **fields: Any,
    ) -> None:
        """The end of an answer."""
        number = conversation_pb2.TurnOutcome.Value(f"TURN_OUTCOME_{outcome.upper()}")
        report = conversation_pb2.TurnReport(utterance_id=utterance, outcome=number, **fields)
        self.server(request_id, report=report)

    def question(self, text: str = "What?", turn: int = 0) -> None:
        """A turn of the user, from its start to its words."""
        self.happens("user_speech_started", 100)
        self.happens("user_speech_stopped", 900)
        self.happens("user_turn_ended", 900)
        self.user_says(text, turn)

    def take(self) -> list[str]:
        """The types of the events so far, which are then forgotten."""
        kinds = [event["type"] for event in self.events]
        self.events.clear()
        self.requests.clear()
        return kinds

    def last(self, kind: str) -> dict[str, Any]:
        """The latest event of a type."""
        return next(event for event in reversed(self.events) if event["type"] == kind)

    def kinds(self) -> list[str]:
        """The types of the events so far."""
        return [event["type"] for event in self.events]

    def _keep(self, outcome: Outcome) -> Outcome:
        self.events += outcome.events
        self.requests += outcome.requests
        return outcome
