from typing import get_args

import pytest
from prometheus_client import REGISTRY, Counter, Gauge, Histogram

from minmo.rpc import metrics

UNITS = ("_seconds", "_total", "_factor", "_size")
METRICS = {
    name: metric
    for name, metric in vars(metrics).items()
    if isinstance(metric, Counter | Gauge | Histogram)
}


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS.keys())
def test_names_follow_prometheus_conventions(metric: Counter | Gauge | Histogram) -> None:
    (family,) = metric.describe()
    assert family.name.startswith("minmo_")
    assert family.documentation.endswith(".")
    assert not family.name.endswith("_total"), "the client adds it to counters"
    if isinstance(metric, Histogram):
        assert family.name.endswith(UNITS)


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.mark.parametrize("hop", get_args(metrics.Hop))
def test_a_hop_is_observed_under_its_own_name(hop: metrics.Hop) -> None:
    before = sample("minmo_hop_seconds_sum", hop=hop)
    metrics.observe_hop(hop, 0.125)
    assert sample("minmo_hop_seconds_sum", hop=hop) == before + 0.125
    assert hop in metrics.HOP._documentation


@pytest.mark.parametrize("outcome", get_args(metrics.TurnOutcome))
def test_a_turn_is_counted_under_its_outcome(outcome: metrics.TurnOutcome) -> None:
    before = sample("minmo_turns_total", outcome=outcome)
    metrics.count_turn(outcome)
    assert sample("minmo_turns_total", outcome=outcome) == before + 1
    assert outcome in metrics.TURNS._documentation


def test_a_failed_call_to_redis_is_timed_and_counted() -> None:
    with pytest.raises(ConnectionError), metrics.redis_call("test"):
        raise ConnectionError
    assert sample("minmo_redis_errors_total", operation="test") == 1
    assert sample("minmo_redis_call_duration_seconds_count", operation="test") == 1
