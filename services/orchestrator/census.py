"""Which conversations are open, and what goes on in them: for the metrics."""

from __future__ import annotations

from types import TracebackType

from minmo.rpc import metrics


class Census:
    """Counts one conversation, from entering it to leaving it (``with``)."""

    def __init__(self) -> None:
        self._state: metrics.SessionState | None = None

    def __enter__(self) -> Census:
        metrics.SESSIONS_OPEN.inc()
        self.is_now("idle")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        metrics.SESSIONS_OPEN.dec()
        if self._state is not None:
            metrics.SESSIONS.labels(self._state).dec()

    def is_now(self, state: metrics.SessionState) -> None:
        """What goes on from here on."""
        if state != self._state:
            if self._state is not None:
                metrics.SESSIONS.labels(self._state).dec()
            metrics.SESSIONS.labels(state).inc()
            self._state = state
