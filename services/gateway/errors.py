"""What a client did wrong, as the `error` event of the protocol."""

from __future__ import annotations

from typing import Any

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"


class EventError(Exception):
    """A client's event that is not carried out; the connection goes on.

    Attributes:
        message: for people.
        code: for programs, as in ``invalid_value``.
        param: path of the field that is wrong, as in ``session.audio.output.speed``.
        event_id: of the client's event, if it had one.
        kind: the protocol's error type.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        event_id: str | None = None,
        kind: str = INVALID_REQUEST,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.event_id = event_id
        self.kind = kind

    def to_event(self, event_id: str | None = None) -> dict[str, Any]:
        """The `error` event.

        Args:
            event_id: of the client's event, where the error does not know it.
        """
        return {
            "type": "error",
            "error": {
                "type": self.kind,
                "code": self.code,
                "message": self.message,
                "param": self.param,
                "event_id": self.event_id or event_id,
            },
        }


def not_supported(param: str, what: str) -> EventError:
    """A part of the protocol that is not there.

    Args:
        param: the field, or ``type`` for a whole event.
        what: what is not supported, and what to do.
    """
    return EventError("unsupported", what, param=param)
