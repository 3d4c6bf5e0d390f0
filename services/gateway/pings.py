"""How long the way to a client and back takes: pings of ours, and their pongs."""

from __future__ import annotations

from minmo.rpc import metrics

EVERY_SECONDS = 5.0
"""Time between two pings."""


class Pings:
    """One ping at a time; no clock: who calls says what time it is, in seconds."""

    def __init__(self) -> None:
        self._count = 0
        self._sent: float | None = None
        self._next = 0.0

    def due(self, now: float) -> bool:
        """Whether another ping should be sent; asked again, not before the next is."""
        if now < self._next:
            return False
        self._next = now + EVERY_SECONDS
        return True

    def payload(self, now: float) -> bytes:
        """What a ping carries that is sent now. One that was not answered is given up."""
        self._count += 1
        self._sent = now
        return self._count.to_bytes(8, "big")

    def answered(self, payload: bytes, now: float) -> None:
        """A pong has come; others' pings are none of ours."""
        if self._sent is not None and payload == self._count.to_bytes(8, "big"):
            metrics.HOP_CLIENT.observe(now - self._sent)
            self._sent = None
