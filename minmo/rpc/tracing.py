"""Traces of turns, over all services, as an option (``--tracing-endpoint``).

One turn is one trace. The orchestrator begins it, every other service continues it: with a span for
what it was asked to do, whose parent comes with the request as a W3C ``traceparent`` (in the
metadata of a call, or, where a stream outlives a turn, in its messages). Nobody else begins one.

A span is begun with `begin_trace` or `begin` and ended by whoever holds it. What runs `within` a
span, and every task that it starts, has it as its current one: calls carry it by themselves. ::

    trace = tracing.begin_trace("turn", session_id=session)
    with tracing.within(trace):
        task = asyncio.create_task(answer())   # its calls are of this turn
    ...
    trace.end()

Times are monotonic seconds, as everywhere. Where tracing is off, or a turn is not sampled, all of
this does nothing, costs next to nothing, and OpenTelemetry is not even imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from minmo.rpc.spans import Tracer
    from minmo.settings import ServiceSettings

TRACEPARENT_KEY = "traceparent"
"""The W3C header's name, in the metadata of calls."""

Attribute = str | int | float | bool
Kind = Literal["internal", "client", "server"]
"""`client`: waits for another process. `server`: is what another process waits for."""


class TracingError(Exception):
    """Traces cannot be made here; the text says why and what to do."""


class Span:
    """A stretch of time of a trace; this one of a trace that is not made.

    Attributes:
        traceparent: what makes spans of other processes its children, as the W3C header says it;
            empty if there is no trace.
    """

    traceparent: str = ""

    def child(self, name: str, began: float | None, kind: Kind) -> Span:
        """A span within this one; see `begin`."""
        return self

    def set(self, **attributes: Attribute) -> None:
        """Notes facts; never what somebody said."""

    def event(self, name: str, at: float | None = None) -> None:
        """Notes a moment, by default now."""

    def end(self, at: float | None = None, *, failure: str = "") -> None:
        """Ends it, once; later ends change nothing.

        Args:
            at: when; by default now.
            failure: a word for why it failed, as a status or a reason.
        """


NONE = Span()
"""What stands for a span where there is no trace."""

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_tracer: Tracer | None = None
_current: ContextVar[Span] = ContextVar("minmo_span", default=NONE)


def start(service: str, settings: ServiceSettings) -> None:
    """Begins to trace, if the settings say where to.

    Raises:
        TracingError: the extra is not installed.
    """
    if settings.tracing_endpoint is None:
        return
    try:
        from minmo.rpc.spans import Tracer, exporter
    except ImportError as error:
        raise TracingError(
            f"--tracing-endpoint needs the extra `tracing` ({error}): pip install 'minmo[tracing]'"
        ) from None
    sending = exporter(settings.tracing_endpoint)
    use(Tracer(service, settings.tracing_sample_rate, sending))


def use(tracer: Tracer) -> None:
    """Traces with this from here on."""
    global _tracer  # noqa: PLW0603 - a process has one tracer, as it has one log
    _tracer = tracer


def stop() -> None:
    """Sends what waits, for two seconds at most, and traces no more."""
    global _tracer
    if _tracer is not None:
        tracer, _tracer = _tracer, None
        tracer.close()


def begin_trace(
    name: str, *, began: float | None = None, link: str = "", **attributes: Attribute
) -> Span:
    """A span that begins a trace, if it is to be sampled.

    Args:
        name: what it is.
        began: when; by default now.
        link: ``traceparent`` of another trace that has to do with this one.
        attributes: facts.
    """
    if _tracer is None:
        return NONE
    span = _tracer.root(name, began, link)
    span.set(**attributes)
    return span


def begin(
    name: str,
    *,
    parent: Span | str | None = None,
    began: float | None = None,
    kind: Kind = "internal",
    **attributes: Attribute,
) -> Span:
    """A span within another one. Without a trace to be in there is none.

    Args:
        name: what it is.
        parent: which; a ``traceparent`` where it is another process'. By default the current one.
        began: when; by default now.
        kind: of the process's part in it.
        attributes: facts.
    """
    if _tracer is None or parent == "":
        return NONE
    if isinstance(parent, str):
        span = _tracer.continued(name, parent, began, kind)
    else:
        span = (_current.get() if parent is None else parent).child(name, began, kind)
    if span is not NONE:
        span.set(**attributes)
    return span


@contextmanager
def span(
    name: str, *, parent: str | None = None, kind: Kind = "internal", **attributes: Attribute
) -> Iterator[Span]:
    """A span that lasts as long as the block, which runs within it; its arguments are `begin`'s."""
    made = begin(name, parent=parent, kind=kind)
    if made is NONE:
        yield made
        return
    made.set(**attributes)
    try:
        with within(made):
            yield made
    except Exception as error:
        made.end(failure=type(error).__name__)
        raise
    except BaseException:
        made.set(cancelled=True)
        raise
    finally:
        made.end()


@contextmanager
def within(span: Span) -> Iterator[None]:
    """Makes a span the current one, also of tasks that are made meanwhile."""
    token = _current.set(span)
    try:
        yield
    finally:
        _current.reset(token)


def current() -> Span:
    """The current span."""
    return _current.get()


def traceparent() -> str:
    """What makes spans of other processes children of the current one; empty without a trace."""
    return _current.get().traceparent


def checked(traceparent: str) -> str:
    """A ``traceparent`` that somebody unknown has sent; empty if it is none."""
    return traceparent if _TRACEPARENT.fullmatch(traceparent) else ""


def traceparent_of(metadata: Any) -> str:
    """What a call brings along in its metadata; empty if nothing."""
    if _tracer is None:
        return ""
    for key, value in metadata or ():
        if key == TRACEPARENT_KEY:
            return checked(value if isinstance(value, str) else value.decode("ascii", "replace"))
    return ""
