"""The compose files: what Docker Compose, the services and Prometheus make of them."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import prometheus
from tests.composed import (
    DEPLOY,
    FILES,
    ROOT,
    SECRETS,
    environment,
    mounts,
    published,
    run,
    services,
)
from tests.containers import NAMES, read
from tests.deployment_settings import SETTINGS, problems

KINDS = sorted(FILES)
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
EXAMPLE = DEPLOY / "compose.env.example"
PROMETHEUS = DEPLOY / "prometheus" / "prometheus.compose.yaml"
PROVISIONING = DEPLOY / "grafana" / "provisioning"
SECONDS = 30

both = pytest.mark.parametrize("kind", KINDS)


def own(kind: str) -> dict[str, dict[str, Any]]:
    """The services that MinMo's images run, by name."""
    return {
        name: service for name, service in services(kind).items() if name in {*SETTINGS, "weights"}
    }


# --- what it is told


@pytest.mark.parametrize("secret", sorted(SECRETS))
def test_nothing_starts_without_a_secret(secret: str) -> None:
    # As in the example.
    done = run("cpu", {**SECRETS, secret: ""})
    assert done.returncode != 0
    assert secret in done.stderr


def test_the_example_names_every_variable_with_the_value_that_is_taken_without_it() -> None:
    example = dict(re.findall(r"^([A-Z_]+)=(.*)$", EXAMPLE.read_text(), re.MULTILINE))
    read_by_files: dict[str, str] = {}
    for name in FILES["gpu"]:
        for variable, default in re.findall(
            r"(?<!\$)\$\{([A-Z_]+)(?::-([^}]*)|:\?[^}]*)\}", (DEPLOY / name).read_text()
        ):
            assert read_by_files.setdefault(variable, default) == default
    assert example.pop("COMPOSE_PROJECT_NAME") == "minmo"
    assert example == read_by_files
    assert {name for name, value in example.items() if not value} == set(SECRETS)


@both
@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_a_service_is_told_what_it_can_be_told(kind: str, name: str) -> None:
    service = services(kind)[name]
    assert problems(name, environment(service)) == []
    # The image has the command line.
    assert not service.get("command")


@both
def test_a_service_calls_others_where_they_listen(kind: str) -> None:
    listening = {"triton:8001", f"redis:{6379}"}
    for name, service in own(kind).items():
        port = environment(service).get("MINMO_PORT")
        if port is not None:
            assert int(port) in read(name).ports
            listening.add(f"{name}:{port}")
    called = {
        re.sub(r"^.*(?:///|@|//)|/0$", "", value)
        for service in own(kind).values()
        for variable, value in environment(service).items()
        if variable.endswith(("_ADDRESS", "_URL"))
    }
    assert called == listening - {"gateway:8080"}


@both
def test_a_service_shows_the_token_that_the_other_asks_for(kind: str) -> None:
    told = {name: environment(service) for name, service in services(kind).items()}
    upstream = told["orchestrator"]["MINMO_UPSTREAM_TOKEN"]
    assert {told[name]["MINMO_TOKEN"] for name in ("encoder", "llm", "voice-decoder")} == {upstream}
    assert told["gateway"]["MINMO_TOKEN"] == told["orchestrator"]["MINMO_TOKEN"] != upstream
    assert f":{told['redis']['REDIS_PASSWORD']}@" in told["orchestrator"]["MINMO_REDIS_URL"]


@pytest.mark.parametrize(("kind", "preset"), [("cpu", "mini"), ("gpu", "8b")])
def test_all_services_have_one_preset(kind: str, preset: str) -> None:
    presets = {
        value
        for service in own(kind).values()
        for variable, value in environment(service).items()
        if variable.endswith("PRESET")
    }
    assert presets == {preset}
    command = services(kind)["weights"]["command"]
    assert command[command.index("--preset") + 1] == preset


# --- what it may do


@both
def test_images_are_ours_in_this_version_or_pinned(kind: str) -> None:
    for name, service in services(kind).items():
        image, _, tag = service["image"].rpartition(":")
        if name not in own(kind):
            assert re.fullmatch(r"v?\d+\.\d+\.\d+", tag)
            continue
        assert tag == f"{VERSION}-{kind}"
        file = image.removeprefix("minmo/")
        assert file == ("cli" if name == "weights" else name)
        assert {file, "triton" if kind == "gpu" else "triton-cpu"} <= set(NAMES)


@both
def test_a_container_has_no_rights_that_it_does_not_need_and_no_more_memory(kind: str) -> None:
    for name, service in services(kind).items():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert re.fullmatch(r"[1-9]\d*:\d+", service["user"])
        assert service["deploy"]["resources"]["limits"]["memory"]
        assert service["restart"] == ("on-failure" if name == "weights" else "unless-stopped")
        if name in SETTINGS:
            assert service["user"] == read(name).user
            assert service["init"] is True


@both
def test_every_container_that_stays_has_a_check_of_its_health(kind: str) -> None:
    for name, service in services(kind).items():
        if name in SETTINGS:
            assert read("triton-cpu" if name == "triton" else name).health
        elif name != "weights":
            assert service["healthcheck"]["test"]


@both
def test_a_container_has_time_to_end_in_grace(kind: str) -> None:
    for service in own(kind).values():
        drain = environment(service).get("MINMO_DRAIN_SECONDS")
        if drain is not None:
            assert float(drain) + 10 <= seconds(service["stop_grace_period"])


def seconds(text: str) -> float:
    """A duration as compose writes it, as in `1m30s`."""
    units = {"h": 3600, "m": 60, "s": 1}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)([hms])", text))


@both
def test_weights_are_written_by_one_container_alone(kind: str) -> None:
    writers = set()
    for name, service in own(kind).items():
        for mount in mounts(service):
            if mount.source == "weights":
                assert mount.target == read("base").environment["MINMO_HOME"]
                writers |= set() if mount.read_only else {name}
    assert writers == {"weights"}
    waits = {
        name
        for name, service in own(kind).items()
        if service.get("depends_on", {}).get("weights", {}).get("condition")
        == "service_completed_successfully"
    }
    assert waits == {"triton", "encoder", "voice-decoder"}


@both
def test_only_what_people_use_is_open_and_to_this_host_alone(kind: str) -> None:
    ports = {port for service in services(kind).values() for port in published(service)}
    assert ports == {f"127.0.0.1:{port}:{port}" for port in (3000, 7100, 8080, 9090)}


def test_with_a_gpu_those_that_compute_have_one() -> None:
    with_gpu = {
        name
        for name, service in services("gpu").items()
        for device in service["deploy"]["resources"].get("reservations", {}).get("devices", ())
        if device["driver"] == "nvidia" and device["capabilities"] == ["gpu"]
    }
    assert with_gpu == {"triton", "encoder", "voice-decoder"}
    assert not any(
        "reservations" in service["deploy"]["resources"] for service in services("cpu").values()
    )


# --- Prometheus and Grafana


def test_promtool_accepts_the_configuration() -> None:
    done = subprocess.run(
        [prometheus.program("promtool"), "check", "config", PROMETHEUS],
        check=False,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rules found" in done.stdout


def test_prometheus_scrapes_every_service_where_its_metrics_are() -> None:
    jobs = yaml.safe_load(PROMETHEUS.read_text())["scrape_configs"]
    scraped = {
        (name, target["port"])
        for job in jobs
        for target in job.get("dns_sd_configs", ())
        for name in target["names"]
    }
    expected = {
        (name, int(environment(service)["MINMO_METRICS_PORT"]))
        for name, service in own("cpu").items()
        if "MINMO_METRICS_PORT" in environment(service)
    }
    assert scraped == expected | {("triton", 8002)}
    for name, _ in scraped:
        assert "inside" in services("cpu")[name]["networks"]


@both
def test_files_that_containers_read_are_there(kind: str) -> None:
    for service in services(kind).values():
        for mount in mounts(service):
            if mount.source.startswith("/") and mount.target != "/checkpoints":
                assert Path(mount.source).exists()
    inside = {mount.target: Path(mount.source) for mount in mounts(services(kind)["grafana"])}
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards" / "minmo.yaml").read_text())[
        "providers"
    ]
    dashboards = inside[provider["options"]["path"]]
    assert list(dashboards.glob("*.json"))
    grafana = environment(services(kind)["grafana"])
    first = Path(grafana["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (dashboards / first.name).exists()
    (source,) = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yaml").read_text())[
        "datasources"
    ]
    assert source["url"] == "http://prometheus:9090"
