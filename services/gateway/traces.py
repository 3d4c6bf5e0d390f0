"""The gateway's part in the traces of turns: what it sends of a turn, and its playback."""

from __future__ import annotations

from minmo.rpc import tracing
from minmo.v1.conversation_pb2 import ConverseResponse, TurnEventKind

_PREFIX = "TURN_EVENT_KIND_"


class Traces:
    """Follows the turns of one connection; no clock: who calls says what time it is."""

    def __init__(self) -> None:
        self._playing = tracing.NONE

    def take(self, response: ConverseResponse, now: float) -> None:
        """A response has come, which may begin or end the playback of an answer."""
        if response.HasField("report"):
            self.end(now)
        elif response.event.kind == TurnEventKind.TURN_EVENT_KIND_ASSISTANT_STARTED:
            self._playing = tracing.begin("play", parent=response.traceparent, began=now)

    def sending(self, response: ConverseResponse, now: float) -> tracing.Span:
        """The way of a response to the client, which began `now`; its end is for who sends it."""
        if not response.traceparent:
            return tracing.NONE
        name = "report"
        if response.HasField("event"):
            name = TurnEventKind.Name(response.event.kind).removeprefix(_PREFIX).lower()
        return tracing.begin(f"send_{name}", parent=response.traceparent, began=now)

    def end(self, now: float) -> None:
        """Nothing is played any more."""
        self._playing.end(now)
