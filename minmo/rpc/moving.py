"""What a client of `Converse` sends again when its server stops and another one goes on.

The server says with `Moving` which messages it has dealt with; the client keeps the last few
seconds of what it sent, opens the session elsewhere, and begins with the rest
(`minmo.rpc.converse`).
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

from minmo.v1.conversation_pb2 import ConverseRequest, Moving

KEEP_SECONDS = 5.0
"""How long a client keeps what it has sent."""

_UNNUMBERED = ("config", "playback")
_MAX_KEPT = 4096


@dataclass(frozen=True)
class _Sent:
    request: ConverseRequest
    number: int
    at: float


class Backlog:
    """The latest messages of one stream, as the client has sent them."""

    def __init__(self) -> None:
        self._sent: deque[_Sent] = deque()
        self._requests = 0

    def sent(self, request: ConverseRequest) -> None:
        """Keeps a message; its audio has its sequence already."""
        if request.WhichOneof("message") in _UNNUMBERED:
            return
        now = time.monotonic()
        number = request.audio.sequence
        if not request.HasField("audio"):
            number, self._requests = self._requests, self._requests + 1
        self._sent.append(_Sent(request, number, now))
        while self._sent[0].at < now - KEEP_SECONDS or len(self._sent) > _MAX_KEPT:
            self._sent.popleft()

    def rest(self, moving: Moving) -> list[ConverseRequest]:
        """What the server has not dealt with, in the order in which it was sent."""
        return [
            sent.request
            for sent in self._sent
            if sent.number
            >= (moving.audio_from if sent.request.HasField("audio") else moving.requests_from)
        ]
