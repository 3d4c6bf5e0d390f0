import ast
import re
from pathlib import Path
from typing import get_args

import pytest
from prometheus_client import CollectorRegistry

from minmo.rpc import metrics
from minmo.rpc.catalogue import Catalogue, Exporter, FiguresCollector, Named
from tools import metrics_page

ROOT = Path(__file__).parent.parent.parent
NAME = re.compile(r"minmo(_[a-z0-9]+)+")
NO_BASE_UNIT = re.compile(r"_(ms|us|ns|milliseconds|microseconds|minutes|hours|kb|mb|percent)(_|$)")
# Who may say it freely: callers, users, and what they talk with.
CHOSEN_BY_CALLERS = {
    *("session", "session_id", "utterance", "turn", "text", "tool", "voice", "model", "owner"),
    *("token", "key", "caller", "peer", "address", "path", "origin", "user", "language", "name"),
}
ALL = pytest.mark.parametrize("named", metrics.METRICS.values(), ids=metrics.METRICS.keys())


@ALL
def test_names_follow_prometheus_conventions(named: Named) -> None:
    assert NAME.fullmatch(named.name)
    assert not NO_BASE_UNIT.search(named.name), "base units: seconds, bytes, ratios"
    assert named.name.endswith("_total") == (named.kind == "counter")
    if named.kind == "histogram":
        assert named.name.endswith(("_seconds", "_bytes", "_ratio"))
    assert named.text[:1].isupper() or named.text[:1].isdigit()
    assert named.text.endswith(".")


@ALL
def test_a_label_holds_nothing_that_callers_choose(named: Named) -> None:
    assert not CHOSEN_BY_CALLERS & named.labels.keys()
    assert all(values for values in named.labels.values())


@ALL
def test_buckets_rise_and_cover_two_orders_of_magnitude(named: Named) -> None:
    if named.kind == "histogram":
        assert list(named.buckets) == sorted(set(named.buckets))
        assert named.buckets[-1] >= 40 * named.buckets[0]


def test_metrics_are_made_in_the_catalogue_alone() -> None:
    made = {"Counter", "Gauge", "Histogram", "Summary", "Info", "Enum", "MetricFamily"}
    for path in [*(ROOT / "minmo").rglob("*.py"), *(ROOT / "services").rglob("*.py")]:
        if "prometheus_client" not in (source := path.read_text()):
            continue
        imported = {
            name.name
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("prometheus_client")
            for name in node.names
        }
        constructed = {
            node.func.id
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        if path.name != "catalogue.py":
            assert not imported & constructed & made, f"{path}: name it in minmo/rpc/metrics.py"


def test_no_metric_is_named_elsewhere() -> None:
    name = re.compile(r"[\"']minmo(_[a-z0-9]+)+(_total|_seconds|_ratio|_bytes|_slots)[\"']")
    for path in [*(ROOT / "minmo").rglob("*.py"), *(ROOT / "services").rglob("*.py")]:
        if path.name != "metrics.py" or path.parent.name != "rpc":
            found = {match.group()[1:-1] for match in name.finditer(path.read_text())}
            assert found <= metrics.METRICS.keys(), path


def test_a_name_is_given_once() -> None:
    catalogue = Catalogue(common=("encoder",))
    catalogue.counter("minmo_things_total", "Things.", "encoder")
    with pytest.raises(ValueError, match="twice"):
        catalogue.gauge("minmo_things_total", "Things.", "encoder")


@pytest.mark.parametrize("service", [name for name in get_args(Exporter) if name != "triton"])
def test_a_service_exports_its_own_metrics_and_no_others(service: Exporter) -> None:
    registry = CollectorRegistry()
    metrics.publish(service, registry)
    exported = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in registry.collect()
    }
    own = {
        named.name
        for named in metrics.METRICS.values()
        if service in named.exporters and named.instrument is not None
    }
    assert exported == own
    assert registry.get_sample_value(
        "minmo_build_info",
        dict(zip(("service", "version", "python"), _build(registry), strict=True)),
    )


def _build(registry: CollectorRegistry) -> list[str]:
    (family,) = [family for family in registry.collect() if family.name == "minmo_build_info"]
    return list(family.samples[-1].labels.values())


def test_series_of_known_labels_are_there_before_anything_happens() -> None:
    registry = CollectorRegistry()
    metrics.publish("orchestrator", registry)
    for regret in get_args(metrics.Regret):
        value = registry.get_sample_value("minmo_turn_regrets_total", {"regret": regret})
        assert value is not None


def test_figures_are_published_as_they_are_when_asked_for() -> None:
    class Figures:
        slots = 3
        compute_seconds = 0.0

    figures, registry = Figures(), CollectorRegistry()
    collector = FiguresCollector(
        lambda: figures,
        {"slots": metrics.VOICE_SLOTS, "compute_seconds": metrics.VOICE_COMPUTE},
        registry,
    )
    figures.compute_seconds = 1.5
    assert registry.get_sample_value("minmo_voice_slots") == 3
    assert registry.get_sample_value("minmo_voice_compute_seconds_total") == 1.5
    collector.close()
    assert registry.get_sample_value("minmo_voice_slots") is None


def test_what_is_lacking_is_told_by_its_name() -> None:
    registry = CollectorRegistry()
    metrics.publish("llm", registry)
    metrics.set_readiness({"triton"})
    assert registry.get_sample_value("minmo_ready") == 0
    assert registry.get_sample_value("minmo_not_ready", {"reason": "triton"}) == 1
    assert registry.get_sample_value("minmo_not_ready", {"reason": "redis"}) == 0
    metrics.set_readiness(set())
    assert registry.get_sample_value("minmo_ready") == 1
    assert registry.get_sample_value("minmo_not_ready", {"reason": "triton"}) == 0


def test_the_page_is_made_from_the_names() -> None:
    text = metrics_page.PAGE.read_text()
    assert metrics_page.page(text) == text, "run python tools/metrics_page.py"
    for name in metrics.METRICS:
        assert f"`{name}" in text


def test_the_expressions_on_the_page_use_metrics_that_exist() -> None:
    text = metrics_page.PAGE.read_text().partition(metrics_page.BEGIN)[0]
    suffixes = ("_bucket", "_sum", "_count")
    for name in re.findall(r"minmo_[a-z0-9_]+", text):
        if name in ("minmo_voice", "minmo_encoder"):  # the beginnings of several
            continue
        base = next((name.removesuffix(end) for end in suffixes if name.endswith(end)), name)
        assert base in metrics.METRICS or name in metrics.METRICS
