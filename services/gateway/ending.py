"""How a connection ends: with which code, and what the client is told before."""

from __future__ import annotations

import grpc
from aiohttp import WSCloseCode

from minmo.rpc.errors import StatusError
from services.gateway.errors import INVALID_REQUEST, SERVER_ERROR, EventError


class ConnectionEnd(Exception):  # noqa: N818 - most ends are none
    """The connection ends.

    Attributes:
        reason: for logs and metrics: one of few.
        code: of the WebSocket's close frame.
        error: what the client is told before.
    """

    def __init__(
        self, reason: str, code: int = WSCloseCode.OK, error: EventError | None = None
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code
        self.error = error


def end_of(failure: StatusError) -> ConnectionEnd:
    """How the connection ends when the orchestrator refuses or is gone."""
    code, close, kind = "server_error", WSCloseCode.INTERNAL_ERROR, SERVER_ERROR
    match failure.code:
        case grpc.StatusCode.UNAUTHENTICATED | grpc.StatusCode.PERMISSION_DENIED:
            code, close, kind = "invalid_api_key", WSCloseCode.POLICY_VIOLATION, INVALID_REQUEST
        case grpc.StatusCode.NOT_FOUND:
            code, close, kind = "session_not_found", WSCloseCode.POLICY_VIOLATION, INVALID_REQUEST
        case grpc.StatusCode.ABORTED:
            code, close, kind = "session_taken_over", WSCloseCode.POLICY_VIOLATION, INVALID_REQUEST
        case grpc.StatusCode.INVALID_ARGUMENT:
            code, close, kind = "invalid_value", WSCloseCode.POLICY_VIOLATION, INVALID_REQUEST
        case grpc.StatusCode.RESOURCE_EXHAUSTED if failure.reason == "TOO_MANY_SESSIONS":
            code, close, kind = "rate_limit_exceeded", WSCloseCode.TRY_AGAIN_LATER, INVALID_REQUEST
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            code, close = "server_overloaded", WSCloseCode.TRY_AGAIN_LATER
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.DEADLINE_EXCEEDED:
            code, close = "server_unavailable", WSCloseCode.TRY_AGAIN_LATER
    return ConnectionEnd(
        failure.code.name.lower(), close, EventError(code, failure.message, kind=kind)
    )
