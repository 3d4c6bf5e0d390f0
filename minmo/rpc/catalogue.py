"""How metrics are declared, so that what is declared can be published, listed and checked.

Whoever wants to know which metrics there are reads `minmo.rpc.metrics`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from prometheus_client import (
    REGISTRY,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

Exporter: TypeAlias = Literal[
    "gateway", "orchestrator", "encoder", "llm", "voice_decoder", "triton"
]
"""A kind of process that exports metrics."""
Kind: TypeAlias = Literal["counter", "gauge", "histogram"]
Values: TypeAlias = tuple[str, ...] | str
"""What a label can say: one of these values, or words for where they come from."""
Labels: TypeAlias = Mapping[str, Values]

_MOST_SERIES_AT_THE_START = 64

# The library would export another series for each, which says when it began.
disable_created_metrics()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, eq=False)
class Named:
    """A metric.

    Attributes:
        name: as it is exported.
        kind: what it is to Prometheus.
        text: what it counts.
        exporters: the processes that have it.
        labels: what each of its labels can say.
        buckets: upper bounds of a histogram's.
        instrument: what records it; None for a figure that somebody counts anyway.
    """

    name: str
    kind: Kind
    text: str
    exporters: tuple[Exporter, ...]
    labels: Labels = field(default_factory=dict)
    buckets: tuple[float, ...] = ()
    instrument: Counter | Gauge | Histogram | None = None


class Catalogue:
    """Metrics, each declared once.

    Args:
        common: a metric that all of these export is exported by every service there may be.
    """

    def __init__(self, common: tuple[Exporter, ...]) -> None:
        self._common = frozenset(common)
        self._named: dict[str, Named] = {}

    @property
    def named(self) -> Mapping[str, Named]:
        """All of them, by name."""
        return self._named

    # --- declaring

    def counter(
        self, name: str, text: str, *exporters: Exporter, labels: Labels | None = None
    ) -> Counter:
        """Something that happens, or is used up."""
        made = Counter(name, text, list(labels or ()), registry=None)
        self._add(Named(name, "counter", text, exporters, labels or {}, instrument=made))
        return made

    def gauge(
        self, name: str, text: str, *exporters: Exporter, labels: Labels | None = None
    ) -> Gauge:
        """How much there is now."""
        made = Gauge(name, text, list(labels or ()), registry=None)
        self._add(Named(name, "gauge", text, exporters, labels or {}, instrument=made))
        return made

    def histogram(
        self,
        name: str,
        text: str,
        *exporters: Exporter,
        buckets: tuple[float, ...],
        labels: Labels | None = None,
    ) -> Histogram:
        """How long something takes, or how much of it there is at a time."""
        made = Histogram(name, text, list(labels or ()), buckets=buckets, registry=None)
        self._add(Named(name, "histogram", text, exporters, labels or {}, buckets, made))
        return made

    def figure(self, kind: Kind, name: str, text: str, *exporters: Exporter) -> Named:
        """What somebody counts anyway, to be published by a `FiguresCollector` or by Triton."""
        return self._add(Named(name, kind, text, exporters))

    def _add(self, named: Named) -> Named:
        if named.name in self._named:
            raise ValueError(f"{named.name} is declared twice")
        self._named[named.name] = named
        return named

    # --- publishing

    def publish(self, service: str, registry: CollectorRegistry = REGISTRY) -> None:
        """Exports what the process of a service has.

        Args:
            service: what runs in this process; one that is in no metric has the common ones.
            registry: where they are asked for.
        """
        known = any(service in named.exporters for named in self._named.values())
        for named in self._named.values():
            own = service in named.exporters if known else self._common <= {*named.exporters}
            if named.instrument is not None and own:
                _fill(named, named.instrument)
                registry.register(named.instrument)


def _fill(named: Named, instrument: Counter | Gauge | Histogram) -> None:
    """Makes the series whose labels are known: a rate can then be had of their first event."""
    known = [values for values in named.labels.values() if isinstance(values, tuple)]
    combinations = list(itertools.product(*known))
    if not named.labels or len(known) < len(named.labels):
        return
    if len(combinations) <= _MOST_SERIES_AT_THE_START:
        for combination in combinations:
            instrument.labels(*combination)


class FiguresCollector(Collector):
    """Publishes figures that somebody counts anyway, as they are when they are asked for.

    Args:
        read: gives an object with the figures as attributes; from any thread.
        figures: the metric of each attribute.
        registry: where they are asked for.
    """

    def __init__(
        self,
        read: Callable[[], object],
        figures: Mapping[str, Named],
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self._read, self._figures, self._registry = read, figures, registry
        registry.register(self)

    def close(self) -> None:
        """Publishes no more."""
        self._registry.unregister(self)

    def collect(self) -> Iterator[Metric]:
        """The metrics now."""
        now = self._read()
        for attribute, named in self._figures.items():
            family = CounterMetricFamily if named.kind == "counter" else GaugeMetricFamily
            yield family(named.name, named.text, getattr(now, attribute))
