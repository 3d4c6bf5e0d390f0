"""The processes of a stack: what they are told, what they need, what they must not learn."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from minmo.stack import StackConfig, StackError
from minmo.stack.plan import Plan
from minmo.stack.process import ProcessSpec
from minmo.stack.replicas import SERVICES, kind_of, parse_replicas, target_of
from minmo.weights import WeightsError, home
from minmo.weights.aligned import ALIGNED_MODULES
from minmo.weights.folder import prepared
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


def aligned(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Lets `mini` have aligned weights, as far as names and sizes go."""
    monkeypatch.setenv("MINMO_HOME", str(folder))
    for module in ALIGNED_MODULES:
        with prepared(home.aligned_folder("mini") / module, module, 1, "training", ()):
            pass


def test_in_aligned_mode_embeddings_are_loaded_and_in_both_hidden_states_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aligned(monkeypatch, tmp_path)
    for mode, preload in (("cascade", "words"), ("aligned", "embeddings")):
        planned, specs = plan(tmp_path, mode=mode)
        assert planned.mode == mode
        assert value(specs["orchestrator"], "--mode") == mode
        assert value(specs["encoder"], "--preload") == preload
        assert "--no-hidden-states" not in specs["voice_decoder"].command


def test_a_preset_is_aligned_by_default_where_it_is_good_enough_and_its_weights_are_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINMO_HOME", str(tmp_path))
    monkeypatch.setattr("minmo.weights.aligned.packaged_set", lambda name: tmp_path / "none")
    monkeypatch.setattr("minmo.stack.mode.ALIGNED_BY_DEFAULT", frozenset({"mini"}))
    assert plan(tmp_path)[0].mode == "cascade"
    aligned(monkeypatch, tmp_path)
    assert plan(tmp_path)[0].mode == "aligned"
    assert plan(tmp_path, mode="cascade")[0].mode == "cascade"
    monkeypatch.setattr("minmo.stack.mode.ALIGNED_BY_DEFAULT", frozenset())
    assert plan(tmp_path)[0].mode == "cascade"
    assert plan(tmp_path, mode="aligned")[0].mode == "aligned"


def test_aligned_mode_without_its_weights_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINMO_HOME", str(tmp_path))
    monkeypatch.setattr("minmo.weights.aligned.packaged_set", lambda name: tmp_path / "none")
    with pytest.raises(WeightsError, match="'mini' has not been taught to listen"):
        plan(tmp_path, mode="aligned")


def test_replicas_are_processes_of_their_own_and_their_clients_know_all_of_them(
    tmp_path: Path,
) -> None:
    planned, specs = plan(tmp_path, replicas={"encoder": 2, "llm": 2}, held_back={"llm": 1})
    assert {name for name in specs if kind_of(name) in ("encoder", "llm", "triton")} == {
        *("encoder", "encoder-2", "llm", "llm-2", "llm-3", "triton", "triton-2", "triton-3")
    }
    first, second = planned.addresses["encoder"], planned.addresses["encoder-2"]
    assert planned.targets["encoder"] == f"ipv4:{first},{second}"
    assert value(specs["orchestrator"], "--encoder-address") == planned.targets["encoder"]
    assert (
        value(specs["orchestrator"], "--voice-decoder-address")
        == planned.addresses["voice_decoder"]
    )
    # Each front has a Triton of its own, which keeps its sessions' caches.
    for number in ("", "-2", "-3"):
        triton = planned.addresses[f"triton{number}"]
        assert value(specs[f"llm{number}"], "--triton-address") == triton
        assert specs[f"llm{number}"].needs == [f"triton{number}"]
    assert len(set(planned.metrics_urls.values())) == len(planned.metrics_urls) == 10
    assert [name for name, spec in specs.items() if spec.held_back] == ["triton-3", "llm-3"]
    assert planned.addresses["llm-3"] in planned.targets["llm"]
    assert "llm-3" not in specs["orchestrator"].needs
    assert {"encoder-2", "llm-2"} <= set(specs["orchestrator"].needs)


def test_replicas_of_what_the_world_reaches_have_ports_of_their_own(tmp_path: Path) -> None:
    planned, specs = plan(tmp_path, replicas={"orchestrator": 2})
    assert planned.addresses["orchestrator"] == "127.0.0.1:7100"
    port = value(specs["orchestrator-2"], "--port")
    assert planned.targets["orchestrator"] == f"ipv4:127.0.0.1:7100,127.0.0.1:{port}"
    certificate = tmp_path / "cert.pem"
    with pytest.raises(StackError, match="no certificate is for a list of addresses"):
        plan(tmp_path, replicas={"orchestrator": 2}, tls_cert=certificate, tls_key=certificate)


def test_replicas_of_an_external_triton_share_it(tmp_path: Path) -> None:
    _, specs = plan(tmp_path, replicas={"llm": 2}, triton_address="elsewhere:8001")
    assert value(specs["llm-2"], "--triton-address") == "elsewhere:8001"
    assert "triton-2" not in specs


def test_a_stand_in_takes_the_place_of_a_service_and_its_flags(tmp_path: Path) -> None:
    planned, specs = plan(tmp_path, stand_ins={"llm": ("-m", "some.module", "llm")})
    assert list(specs["llm"].command[1:4]) == ["-m", "some.module", "llm"]
    assert value(specs["llm"], "--ready-file").endswith("llm.json")
    assert "triton" not in specs
    assert "triton" not in planned.addresses
    assert planned.config.needs_weights


def test_calls_have_as_long_to_end_as_was_said(tmp_path: Path) -> None:
    for seconds, expected in ((None, {"1", "2", "3"}), (12.5, {"12.5"})):
        _, specs = plan(tmp_path, drain_seconds=seconds)
        drains = {
            value(spec, "--drain-seconds")
            for spec in specs.values()
            if "--drain-seconds" in spec.command
        }
        assert drains <= expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("encoder=2", {"encoder": 2}),
        ("voice-decoder=3, llm=1", {"voice_decoder": 3, "llm": 1}),
        ("all=2", dict.fromkeys(SERVICES, 2)),
    ],
)
def test_replicas_are_read(text: str, expected: dict[str, int]) -> None:
    assert parse_replicas(text) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("speaker=2", "no service 'speaker'; there are: encoder"),
        ("encoder", "from 1 to 64"),
        ("encoder=0", "from 1 to 64"),
        ("encoder=65", "from 1 to 64"),
        ("encoder=2,encoder=2", "named twice"),
    ],
)
def test_replicas_that_cannot_be_say_what_can(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_replicas(text)


def test_a_list_of_addresses_takes_no_names() -> None:
    assert target_of(["somewhere:1"]) == "somewhere:1"
    with pytest.raises(StackError, match="give an IPv4 address as --host"):
        target_of(["127.0.0.1:1", "[::1]:2"])
