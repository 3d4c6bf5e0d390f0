"""The traces of a conversation: one for each turn, from the user's first word to what was heard."""

from __future__ import annotations

from dataclasses import dataclass

from minmo.rpc import tracing


@dataclass(frozen=True)
class Traces:
    """Begins them.

    Attributes:
        session_id: the session.
        mode: cascade or aligned.
        link: ``traceparent`` of what the client does with the stream; empty for none.
    """

    session_id: str
    mode: str = ""
    link: str = ""

    def begin(self, began: float) -> tracing.Span:
        """The trace of a turn that began then (monotonic seconds)."""
        return tracing.begin_trace(
            "turn", began=began, link=self.link, session_id=self.session_id, mode=self.mode
        )


def end(trace: tracing.Span, outcome: str, *, failure: str = "") -> None:
    """Ends the trace of a turn, and says what became of it."""
    trace.set(outcome=outcome)
    trace.end(failure=failure)
