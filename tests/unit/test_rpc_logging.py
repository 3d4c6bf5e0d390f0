import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from minmo.rpc import logging as rpc_logging


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    rpc_logging.configure("info", "json", "encoder", stream)
    yield stream
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


def records(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_json_with_service_level_time_and_what_was_bound(lines: io.StringIO) -> None:
    structlog.contextvars.bind_contextvars(session="s-1", turn="3")
    structlog.get_logger("minmo.x").info("turn ended", outcome="answered")
    (record,) = records(lines)
    assert record.pop("timestamp").endswith("Z")
    assert record == {
        "event": "turn ended",
        "level": "info",
        "logger": "minmo.x",
        "outcome": "answered",
        "service": "encoder",
        "session": "s-1",
        "turn": "3",
    }


def test_the_standard_librarys_lines_look_the_same(lines: io.StringIO) -> None:
    logging.getLogger("redis").warning("lost %s", "the connection", extra={"attempt": 2})
    (record,) = records(lines)
    assert record["event"] == "lost the connection"
    assert (record["logger"], record["level"], record["attempt"]) == ("redis", "warning", 2)


def test_an_exception_is_one_line_with_its_traceback(lines: io.StringIO) -> None:
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        structlog.get_logger().exception("failed")
    (record,) = records(lines)
    assert "Traceback" in record["exception"]
    assert "RuntimeError: broken" in record["exception"]


def test_less_severe_lines_are_left_out(lines: io.StringIO) -> None:
    structlog.get_logger().debug("detail")
    assert records(lines) == []


def test_secrets_are_blanked_by_name_and_by_shape(lines: io.StringIO) -> None:
    structlog.get_logger().info(
        "sent Authorization: Bearer hush",
        token="hush",
        settings={"upstream_token": "hush", "redis_url": "redis://me:hush@host:6379/0"},
        redis_url="redis://:hush@host",
    )
    logging.getLogger("x").warning("cannot reach redis://me:hush@host")
    assert "hush" not in lines.getvalue()
    assert records(lines)[0]["redis_url"] == "redis://***@host"


def test_the_llms_tokens_are_no_secret(lines: io.StringIO) -> None:
    structlog.get_logger().info("answer", tokens=12, first_token=0.1)
    assert records(lines)[0]["tokens"] == 12
    assert records(lines)[0]["first_token"] == 0.1
