"""Errors that cross a wire: made with a reason and a limit, read back by the client.

A handler raises what these constructors make; `minmo.rpc.server` turns it into a gRPC status that
carries ``google.rpc.ErrorInfo`` (a reason for programs, metadata such as the limit) and, for a bad
field, ``google.rpc.BadRequest``::

    raise invalid_argument("sample_rate_hz", f"{rate} Hz is not supported", limit="8000 to 48000")

A client reads it with `parse` (a `StatusError` again) or prints it with `describe`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import grpc
from google.protobuf.any_pb2 import Any as AnyProto
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

DOMAIN = "minmo"
DRAINING = "DRAINING"
"""Reason of a server that is about to stop: another one can go on at once."""
DETAILS_KEY = "grpc-status-details-bin"
# A peer drops a status whose trailers exceed 8 KiB. The message travels there twice or three times
# (as itself, percent-encoded, and within the details, in base64).
_MAX_MESSAGE_BYTES = 1000
_MAX_METADATA_BYTES = 200
# What gRPC says, with INTERNAL, of a peer that died while something was on its way to it.
_BROKEN_WHILE_WRITING = "Internal error from Core"
# What it says, with UNAVAILABLE, where all replicas that it reached say that they are not ready.
_NOT_READY = "backend unhealthy"

_CODES = {code.value[0]: code for code in grpc.StatusCode}
_Detail = TypeVar("_Detail", bound=Message)


class StatusError(Exception):
    """A gRPC status, raised by a handler or read back from a call.

    Attributes:
        code: the gRPC status code.
        message: one sentence for people: what was wrong, the limit, the fix.
        details: messages of ``google.rpc`` that programs read.
    """

    def __init__(
        self, code: grpc.StatusCode, message: str, details: Sequence[Message] = ()
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = _cut(message, _MAX_MESSAGE_BYTES)
        self.details = tuple(details)

    @property
    def reason(self) -> str:
        """The reason for programs, as in ``TEXT_TOO_LONG``; empty if the status carries none."""
        return next((info.reason for info in self._details_of(ErrorInfo)), "")

    @property
    def metadata(self) -> dict[str, str]:
        """What the reason carries, as in ``{"limit": "2000 characters"}``."""
        return next((dict(info.metadata) for info in self._details_of(ErrorInfo)), {})

    @property
    def violations(self) -> dict[str, str]:
        """Bad fields of the request and what is wrong with each."""
        return {
            violation.field: violation.description
            for request in self._details_of(BadRequest)
            for violation in request.field_violations
        }

    @property
    def retry_after_seconds(self) -> float | None:
        """How long to wait before another try, if the server said so."""
        delays = (info.retry_delay for info in self._details_of(RetryInfo))
        return next((delay.ToTimedelta().total_seconds() for delay in delays), None)

    def to_status(self) -> Status:
        """The same as ``google.rpc.Status``."""
        status = Status(code=self.code.value[0], message=self.message)
        for detail in self.details:
            status.details.add().Pack(detail)
        return status

    def _details_of(self, kind: type[_Detail]) -> Iterator[_Detail]:
        return (detail for detail in self.details if isinstance(detail, kind))

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"


def error(
    code: grpc.StatusCode,
    reason: str,
    message: str,
    *,
    limit: object = None,
    retry_after_seconds: float | None = None,
    metadata: Mapping[str, object] | None = None,
) -> StatusError:
    """A `StatusError` with a reason; the functions below are this with a code.

    Args:
        reason: UPPER_SNAKE_CASE, stable: programs compare it.
        message: one sentence for people.
        limit: what was exceeded, with its unit.
        retry_after_seconds: when another try makes sense.
        metadata: more that a program may want, as strings.
    """
    values = {"limit": limit, **(metadata or {})}
    details: list[Message] = [
        ErrorInfo(
            reason=reason,
            domain=DOMAIN,
            metadata={
                key: _cut(str(value), _MAX_METADATA_BYTES)
                for key, value in values.items()
                if value is not None
            },
        )
    ]
    if retry_after_seconds is not None:
        details.append(RetryInfo(retry_delay=_duration(retry_after_seconds)))
    return StatusError(code, message, details)


def invalid_argument(
    field: str, message: str, *, limit: object = None, reason: str = "INVALID_ARGUMENT"
) -> StatusError:
    """The request's `field` (a path, as in ``config.sample_rate_hz``) has a bad value."""
    made = error(
        grpc.StatusCode.INVALID_ARGUMENT,
        reason,
        f"{field}: {message}",
        limit=limit,
        metadata={"field": field},
    )
    violation = BadRequest.FieldViolation(
        field=_cut(field, _MAX_METADATA_BYTES), description=_cut(message, _MAX_MESSAGE_BYTES)
    )
    return StatusError(
        made.code, made.message, [*made.details, BadRequest(field_violations=[violation])]
    )


def resource_exhausted(
    message: str,
    *,
    limit: object = None,
    reason: str = "RESOURCE_EXHAUSTED",
    retry_after_seconds: float | None = None,
) -> StatusError:
    """A limit of the service or of the caller's quota is reached."""
    return error(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        reason,
        message,
        limit=limit,
        retry_after_seconds=retry_after_seconds,
    )


def not_found(
    message: str, *, reason: str = "NOT_FOUND", metadata: Mapping[str, object] | None = None
) -> StatusError:
    """What the request names does not exist, or is not the caller's."""
    return error(grpc.StatusCode.NOT_FOUND, reason, message, metadata=metadata)


def aborted(
    message: str, *, reason: str = "ABORTED", metadata: Mapping[str, object] | None = None
) -> StatusError:
    """Somebody else was first: another stream took the session, the epoch is stale."""
    return error(grpc.StatusCode.ABORTED, reason, message, metadata=metadata)


def failed_precondition(
    message: str,
    *,
    reason: str = "FAILED_PRECONDITION",
    metadata: Mapping[str, object] | None = None,
) -> StatusError:
    """The request is fine, but not in this state; repeating it does not help."""
    return error(grpc.StatusCode.FAILED_PRECONDITION, reason, message, metadata=metadata)


def unavailable(
    message: str,
    *,
    reason: str = "UNAVAILABLE",
    retry_after_seconds: float | None = None,
    metadata: Mapping[str, object] | None = None,
) -> StatusError:
    """The service, or one behind it, cannot take the call now; another try may succeed."""
    return error(
        grpc.StatusCode.UNAVAILABLE,
        reason,
        message,
        retry_after_seconds=retry_after_seconds,
        metadata=metadata,
    )


def unauthenticated(message: str, *, reason: str = "UNAUTHENTICATED") -> StatusError:
    """The caller has not shown who it is."""
    return error(grpc.StatusCode.UNAUTHENTICATED, reason, message)


def deadline_exceeded(
    message: str, *, limit: object = None, reason: str = "DEADLINE_EXCEEDED"
) -> StatusError:
    """A wait of ours reached its limit."""
    return error(grpc.StatusCode.DEADLINE_EXCEEDED, reason, message, limit=limit)


def internal(
    message: str, *, reason: str = "INTERNAL", metadata: Mapping[str, object] | None = None
) -> StatusError:
    """Something broke on our side; the message must not leak what."""
    return error(grpc.StatusCode.INTERNAL, reason, message, metadata=metadata)


def parse(failure: grpc.RpcError) -> StatusError:
    """The `StatusError` that a server raised, from what a stub raised.

    A status without details (made by gRPC itself, a proxy, another server) gives one without
    details; details of unknown types are dropped.
    """
    if not isinstance(failure, grpc.Call | grpc.aio.AioRpcError):
        return StatusError(grpc.StatusCode.UNKNOWN, str(failure) or type(failure).__name__)
    code, message = failure.code(), failure.details() or ""
    for key, value in failure.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                status = Status.FromString(value)
            except DecodeError:
                break
            details = _unpack(status.details)
            return StatusError(_CODES.get(status.code, code), status.message, details)
    if code is grpc.StatusCode.INTERNAL and message == _BROKEN_WHILE_WRITING:
        return unavailable("the connection broke while something was being written")
    if code is grpc.StatusCode.UNAVAILABLE and _NOT_READY in message:
        return unavailable("no server is ready to take the call", reason="NOT_READY")
    return StatusError(code, message)


async def status_of(call: grpc.aio.Call) -> StatusError:
    """How a call ended whose stream gave no message; OK is a status too."""
    return parse(
        grpc.aio.AioRpcError(
            await call.code(),
            await call.initial_metadata(),
            await call.trailing_metadata(),
            await call.details(),
        )
    )


def describe(failure: grpc.RpcError) -> str:
    """One line that a person can act on.

    As in ``INVALID_ARGUMENT: text: 2400 characters are too many (limit: 2000 characters)``.
    """
    status = parse(failure)
    limit = status.metadata.get("limit", "")
    suffix = f" (limit: {limit})" if limit and limit not in status.message else ""
    return f"{status.code.name}: {status.message or 'no message'}{suffix}"


def _unpack(details: Sequence[AnyProto]) -> list[Message]:
    known: Mapping[str, type[Message]] = {
        kind.DESCRIPTOR.full_name: kind for kind in (ErrorInfo, BadRequest, RetryInfo)
    }
    unpacked: list[Message] = []
    for detail in details:
        kind = known.get(detail.TypeName())
        if kind is not None:
            message = kind()
            try:
                detail.Unpack(message)
            except DecodeError:
                continue
            unpacked.append(message)
    return unpacked


def _cut(text: str, limit: int) -> str:
    data = text.encode(errors="replace")
    return data.decode() if len(data) <= limit else data[: limit - 3].decode(errors="ignore") + "…"


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration
