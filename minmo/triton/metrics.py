"""The engine's figures as metrics of Triton, on Triton's own `/metrics`."""

from __future__ import annotations

import threading
from typing import Any

from minmo.engine.engine import Engine, Snapshot

_INTERVAL_SECONDS = 1.0
_GAUGES = {
    "slots_in_use": ("minmo_llm_slots_in_use", "Cache slots that a session or branch holds."),
    "waiting": ("minmo_llm_waiting", "Operations that wait for a slot or for their step."),
    "running": ("minmo_llm_running", "Operations that run."),
}
_COUNTERS = {
    "steps": ("minmo_llm_steps_total", "Steps of the LLM."),
    "step_seconds": ("minmo_llm_step_seconds_total", "Time of the LLM's steps."),
    "sequences": ("minmo_llm_step_sequences_total", "Sequences in the LLM's steps, summed up."),
    "tokens": ("minmo_llm_tokens_total", "Tokens that the LLM generated."),
    "positions": (
        "minmo_llm_prefill_positions_total",
        "Positions (tokens or embeddings) that the LLM read.",
    ),
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
        self._gauges = {
            name: self._metric(family, metric, text, family.GAUGE)
            for name, (metric, text) in _GAUGES.items()
        }
        self._counters = {
            name: self._metric(family, metric, text, family.COUNTER)
            for name, (metric, text) in _COUNTERS.items()
        }
        total = self._metric(family, "minmo_llm_slots", "Cache slots that there are.", family.GAUGE)
        total.set(engine.options.slots)
        self._total = total
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="llm-metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._ended.set()
        self._thread.join()

    def _metric(self, family: Any, name: str, text: str, kind: Any) -> Any:
        made = family(name=name, description=text, kind=kind)
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
