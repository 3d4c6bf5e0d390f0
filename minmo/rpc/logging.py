"""Structured logs: one line an event, JSON or for the eye, with session and turn, without secrets.

`configure` is called once by `minmo.rpc.server.serve`; modules log with
``log = structlog.get_logger(__name__)`` and ``log.info("turn ended", outcome="answered")``. What a
call binds (method, peer, session, turn) is on every line that its task logs. Lines of the standard
library's ``logging`` come out the same way.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

# Not every "token" is a secret here: the LLM's are logged.
_SECRET_KEY = re.compile(
    r"^(?:(?:api|access|auth|bearer|upstream)_)?token$|password|passwd|secret|authorization|api_key",
    re.IGNORECASE,
)
_URL_PASSWORD = re.compile(r"(?<=://)[^/@\s]*:[^/@\s]+(?=@)")
_BEARER = re.compile(r"(?i)\b(bearer\s+)\S+")
_HIDDEN = "***"

# Libraries whose INFO lines are noise in a service.
_QUIET = ("grpc", "asyncio", "urllib3", "filelock", "numba")


def configure(
    level: str = "info",
    form: Literal["json", "console"] = "json",
    service: str = "",
    stream: TextIO | None = None,
) -> None:
    """Sets up structlog and the standard library's logging for this process.

    Args:
        level: least severe level that is written.
        form: ``json`` (one object a line) or ``console``.
        service: name that every line carries.
        stream: where lines go; stderr if None.
    """
    stream = stream or sys.stderr
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_service(service),
        structlog.stdlib.PositionalArgumentsFormatter(),
    ]
    last: list[Processor] = (
        [
            structlog.processors.format_exc_info,
            hide_secrets,
            structlog.processors.JSONRenderer(default=str),
        ]
        if form == "json"
        else [hide_secrets, structlog.dev.ConsoleRenderer(colors=stream.isatty())]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(True)


def hide_secrets(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """A structlog processor: blanks values that are secret by name, and passwords in URLs."""
    return {key: _hidden(key, value) for key, value in event.items()}


def _hidden(key: str, value: Any) -> Any:
    if _SECRET_KEY.search(key) and value is not None:
        return _HIDDEN
    if isinstance(value, str):
        return _BEARER.sub(rf"\1{_HIDDEN}", _URL_PASSWORD.sub(_HIDDEN, value))
    if isinstance(value, MutableMapping):
        return {inner: _hidden(str(inner), content) for inner, content in value.items()}
    return value


def _add_service(service: str) -> Processor:
    def add(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        if service:
            event.setdefault("service", service)
        return event

    return add
