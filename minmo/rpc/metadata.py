"""The metadata keys that MinMo's calls carry."""

from __future__ import annotations

from minmo.rpc import tracing

AUTHORIZATION_KEY = "authorization"
SESSION_KEY = "minmo-session"
TURN_KEY = "minmo-turn"
NOT_READY_KEY = "minmo-not-ready"
"""Trailing metadata of a health check that says why a service is NOT_SERVING."""


def call_metadata(session: str = "", turn: str | int = "") -> tuple[tuple[str, str], ...]:
    """Metadata that names session and turn, for the logs of every service on the way, and the
    current span, where there is one, for traces.

    Pass it on with each call: ``stub.Encode(..., metadata=call_metadata(session_id, turn))``.

    Raises:
        ValueError: a value that no header can hold (it must be printable ASCII).
    """
    pairs = tuple((key, str(value)) for key, value in ((SESSION_KEY, session), (TURN_KEY, turn)))
    for key, value in pairs:
        if not (value.isascii() and value.isprintable()):
            raise ValueError(f"{key} is {value[:80]!r}: metadata holds printable ASCII only")
    pairs += ((tracing.TRACEPARENT_KEY, tracing.traceparent()),)
    return tuple((key, value) for key, value in pairs if value)


def bearer(token: str) -> str:
    """The value of ``authorization`` for an API token."""
    return f"Bearer {token}"
