import base64

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import DebugInfo

from minmo.rpc import errors
from minmo.rpc.errors import StatusError


def over_the_wire(error: StatusError) -> grpc.aio.AioRpcError:
    """What a client gets when a handler raises `error`."""
    trailers = grpc.aio.Metadata((errors.DETAILS_KEY, error.to_status().SerializeToString()))
    return grpc.aio.AioRpcError(error.code, grpc.aio.Metadata(), trailers, error.message)


def test_an_invalid_argument_names_field_limit_and_fix_on_both_sides() -> None:
    made = errors.invalid_argument(
        "text", "2400 characters are too many", limit="2000 characters", reason="TEXT_TOO_LONG"
    )
    read = errors.parse(over_the_wire(made))
    assert read.code is grpc.StatusCode.INVALID_ARGUMENT
    assert read.message == "text: 2400 characters are too many"
    assert read.reason == "TEXT_TOO_LONG"
    assert read.metadata == {"limit": "2000 characters", "field": "text"}
    assert read.violations == {"text": "2400 characters are too many"}
    assert errors.describe(over_the_wire(made)) == (
        "INVALID_ARGUMENT: text: 2400 characters are too many (limit: 2000 characters)"
    )


@pytest.mark.parametrize(
    ("made", "code"),
    [
        (errors.resource_exhausted("m", limit=3), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.not_found("m"), grpc.StatusCode.NOT_FOUND),
        (errors.aborted("m"), grpc.StatusCode.ABORTED),
        (errors.failed_precondition("m"), grpc.StatusCode.FAILED_PRECONDITION),
        (errors.unavailable("m"), grpc.StatusCode.UNAVAILABLE),
        (errors.unauthenticated("m"), grpc.StatusCode.UNAUTHENTICATED),
        (errors.deadline_exceeded("m", limit="5 s"), grpc.StatusCode.DEADLINE_EXCEEDED),
        (errors.internal("m"), grpc.StatusCode.INTERNAL),
    ],
)
def test_every_error_has_a_code_and_by_default_the_code_as_reason(
    made: StatusError, code: grpc.StatusCode
) -> None:
    read = errors.parse(over_the_wire(made))
    assert (read.code, read.reason, read.message) == (code, code.name, "m")


def test_metadata_and_retry_delay_come_through() -> None:
    made = errors.unavailable(
        "gone", retry_after_seconds=1.5, metadata={"service": "llm", "epoch": 7}
    )
    read = errors.parse(over_the_wire(made))
    assert read.metadata == {"service": "llm", "epoch": "7"}
    assert read.retry_after_seconds == 1.5


def test_a_huge_text_still_fits_into_the_trailers() -> None:
    made = errors.invalid_argument("text", "🙂" * 100_000, limit="🙂" * 100_000)
    message = len(made.message.encode()) * 3
    details = len(base64.b64encode(made.to_status().SerializeToString()))
    assert message + details < 8 * 1024
    assert made.message.endswith("🙂…")


def test_a_status_from_elsewhere_is_read_too() -> None:
    plain = grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "no route to host"
    )
    assert errors.describe(plain) == "UNAVAILABLE: no route to host"
    assert errors.parse(plain).reason == ""


def test_a_peer_that_died_while_it_was_written_to_is_unavailable() -> None:
    broken = grpc.aio.AioRpcError(
        grpc.StatusCode.INTERNAL,
        grpc.aio.Metadata(),
        grpc.aio.Metadata(),
        "Internal error from Core",
    )
    assert errors.parse(broken).code is grpc.StatusCode.UNAVAILABLE


def test_broken_and_unknown_details_do_not_hide_the_status() -> None:
    garbage = grpc.aio.AioRpcError(
        grpc.StatusCode.INTERNAL,
        grpc.aio.Metadata(),
        grpc.aio.Metadata((errors.DETAILS_KEY, b"\xff\xff\xff")),
        "m",
    )
    assert errors.describe(garbage) == "INTERNAL: m"
    details: list[Message] = [DebugInfo(detail="trace")]
    unknown = StatusError(grpc.StatusCode.INTERNAL, "m", details)
    assert errors.parse(over_the_wire(unknown)).details == ()
