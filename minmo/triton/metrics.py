"""The engine's figures as metrics of Triton, on Triton's own `/metrics`."""

from __future__ import annotations

import threading
from typing import Any

from minmo.engine.engine import Engine, Snapshot
from minmo.rpc import metrics
from minmo.rpc.catalogue import Named

_INTERVAL_SECONDS = 1.0
_GAUGES = {
    "slots_in_use": metrics.LLM_SLOTS_IN_USE,
    "waiting": metrics.LLM_WAITING,
    "running": metrics.LLM_RUNNING,
}
_COUNTERS = {
    "steps": metrics.LLM_STEPS,
    "step_seconds": metrics.LLM_STEP_SECONDS,
    "sequences": metrics.LLM_STEP_SEQUENCES,
    "tokens": metrics.LLM_TOKENS,
    "positions": metrics.LLM_PREFILL_POSITIONS,
    "probes": metrics.LLM_PROBES,
}


class EngineMetrics:
    """Publishes the figures of an engine every second, on a thread of its own.

    Args:
        engine: whose.
        family: Triton's `pb_utils.MetricFamily`, which exists only inside Triton.
    """

    def __init__(self, engine: Engine, family: Any) -> None:
        self._engine = engine
        self._families: list[Any] = []
        self._published = Snapshot()
        self._gauges = {name: self._metric(family, named) for name, named in _GAUGES.items()}
        self._counters = {name: self._metric(family, named) for name, named in _COUNTERS.items()}
        self._total = self._metric(family, metrics.LLM_SLOTS)
        self._total.set(engine.options.slots)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="llm-metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._ended.set()
        self._thread.join()

    def _metric(self, family: Any, named: Named) -> Any:
        kind = family.COUNTER if named.kind == "counter" else family.GAUGE
        made = family(name=named.name, description=named.text, kind=kind)
        # A metric doesn't outlive its family.
        self._families.append(made)
        return made.Metric(labels={})

    def _run(self) -> None:
        while not self._ended.wait(_INTERVAL_SECONDS):
            now = self._engine.snapshot()
            for name, gauge in self._gauges.items():
                gauge.set(getattr(now, name))
            for name, counter in self._counters.items():
                counter.increment(getattr(now, name) - getattr(self._published, name))
            self._published = now
