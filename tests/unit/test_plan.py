"""The processes of a stack: what they are told, what they need, what they must not learn."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from minmo.stack import StackConfig
from minmo.stack.plan import Plan
from minmo.stack.process import ProcessSpec
from minmo.weights import home
from tests.unit.tiny_presets import write_preset


def plan(folder: Path, **values: object) -> tuple[Plan, dict[str, ProcessSpec]]:
    ports = count(20_000)
    config = StackConfig(folder=folder, cores=4, **values)  # type: ignore[arg-type]
    planned = Plan(config, folder / "run" / "a", lambda: next(ports), (7100, "127.0.0.1:7100"))
    return planned, {spec.name: spec for spec in planned.specs}


def value(spec: ProcessSpec, flag: str) -> str:
    return spec.command[spec.command.index(flag) + 1]


def test_everything_starts_after_what_it_needs(tmp_path: Path) -> None:
    _, specs = plan(tmp_path)
    needs = {name: set(spec.needs) for name, spec in specs.items()}
    assert needs == {
        "redis": set(),
        "triton": set(),
        "encoder": set(),
        "voice_decoder": set(),
        "llm": {"triton"},
        "orchestrator": {"redis", "encoder", "voice_decoder", "llm"},
    }


def test_the_services_are_told_where_the_others_are(tmp_path: Path) -> None:
    planned, specs = plan(tmp_path)
    orchestrator = specs["orchestrator"]
    for name in ("encoder", "llm", "voice_decoder"):
        address = value(orchestrator, f"--{name.replace('_', '-')}-address")
        assert address == planned.addresses[name]
        assert address == f"127.0.0.1:{value(specs[name], '--port')}"
    assert value(specs["llm"], "--triton-address") == planned.addresses["triton"]
    assert orchestrator.environment["MINMO_REDIS_URL"] == planned.redis_url
    assert len(set(planned.addresses.values())) == 6


def test_threads_follow_the_budget(tmp_path: Path) -> None:
    _, specs = plan(tmp_path)
    assert specs["triton"].environment["OMP_NUM_THREADS"] == "4"
    assert specs["encoder"].environment["OMP_NUM_THREADS"] == "1"
    assert value(specs["encoder"], "--threads") == "1"


def test_only_the_public_api_takes_token_and_tls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINMO_TOKEN", "from outside")
    monkeypatch.setenv("MINMO_TLS_CERT", "/from/outside")
    certificate = tmp_path / "cert.pem"
    _, specs = plan(tmp_path, token="secret", tls_cert=certificate, tls_key=certificate)
    for name, spec in specs.items():
        assert "secret" not in " ".join(spec.command)
        assert "MINMO_TLS_CERT" not in spec.environment
        token = spec.environment.get("MINMO_TOKEN")
        assert token == ("secret" if name == "orchestrator" else None)
    assert value(specs["orchestrator"], "--tls-cert") == str(certificate)


def test_settings_of_one_service_reach_it_alone(tmp_path: Path) -> None:
    _, specs = plan(tmp_path, variables={"encoder": {"MINMO_VAD_THRESHOLD": "0.7"}})
    with_it = [name for name, spec in specs.items() if "MINMO_VAD_THRESHOLD" in spec.environment]
    assert with_it == ["encoder"]


def test_external_servers_are_not_started(tmp_path: Path) -> None:
    planned, specs = plan(
        tmp_path, redis_url="redis://elsewhere:6379/0", triton_address="elsewhere:8001"
    )
    assert set(specs) == {"encoder", "voice_decoder", "llm", "orchestrator"}
    assert planned.redis_url == "redis://elsewhere:6379/0"
    assert value(specs["llm"], "--triton-address") == "elsewhere:8001"
    assert specs["llm"].needs == []


def test_without_metrics_no_port_serves_them(tmp_path: Path) -> None:
    planned, specs = plan(tmp_path, metrics=False)
    assert planned.metrics_urls == {}
    assert value(specs["encoder"], "--metrics-port") == "-1"
    assert "--allow-metrics=false" in specs["triton"].command


def test_every_process_finds_a_preset_that_was_given_by_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_preset(tmp_path)
    monkeypatch.chdir(tmp_path)
    _, specs = plan(tmp_path, preset="tiny.toml")
    path = str(tmp_path / "tiny.toml")
    assert [value(specs[name], "--preset") for name in ("encoder", "voice_decoder", "llm")] == (
        [path] * 3
    )
    assert specs["triton"].environment["MINMO_LLM_PRESET"] == path


def test_large_weights_have_time_to_come_from_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINMO_HOME", str(tmp_path))
    _, specs = plan(tmp_path, triton_address="elsewhere:8001")
    before = specs["encoder"].ready_seconds
    folder = home.module_folder("mini", "llm")
    folder.mkdir(parents=True)
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(5_000_000_000)
    _, specs = plan(tmp_path, triton_address="elsewhere:8001")
    assert specs["encoder"].ready_seconds == before + 100


def test_the_voice_is_told_whether_hidden_states_come(tmp_path: Path) -> None:
    flags = [
        "--no-hidden-states" in plan(tmp_path, mode=mode)[1]["voice_decoder"].command
        for mode in ("cascade", "aligned")
    ]
    assert flags == [True, False]
