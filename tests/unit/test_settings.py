from pathlib import Path

import pytest

from minmo.settings import (
    EncoderSettings,
    LlmSettings,
    OrchestratorSettings,
    ServiceSettings,
    SettingsError,
    VoiceDecoderSettings,
)

ALL = [
    ServiceSettings,
    EncoderSettings,
    LlmSettings,
    VoiceDecoderSettings,
    OrchestratorSettings,
]


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for variable in [name for name in os.environ if name.startswith("MINMO_")]:
        monkeypatch.delenv(variable)


@pytest.mark.parametrize("settings", ALL)
def test_defaults_are_valid_and_described(settings: type[ServiceSettings]) -> None:
    settings.parse("minmo", [])
    for name, field in settings.model_fields.items():
        assert field.description, f"{settings.__name__}.{name} has no description"


@pytest.mark.parametrize("settings", ALL)
def test_help_lists_flag_default_variable_and_meaning_of_every_setting(
    settings: type[ServiceSettings], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        settings.load("minmo", ["--help"])
    assert exit_.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, field in settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert f"[env: MINMO_{name.upper()}]" in text
        assert " ".join(str(field.description).split()) in text
    assert f"(default: {settings.model_fields['max_message_bytes'].default})" in text


def test_a_flag_wins_over_the_environment_which_wins_over_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MINMO_DRAIN_SECONDS", "3")
    monkeypatch.setenv("MINMO_MAX_STREAMS", "8")
    settings = ServiceSettings.parse("minmo", ["--drain-seconds", "5"])
    assert (settings.drain_seconds, settings.max_streams, settings.threads) == (5.0, 8, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "70000"], "--port (MINMO_PORT) is '70000': input should be less than or equal"),
        (["--threads", "many"], "--threads (MINMO_THREADS) is 'many': input should be a valid int"),
        (["--mode", "psychic"], "is 'psychic': input should be 'cascade' or 'aligned'"),
        (["--llm-address", "nowhere"], "is 'nowhere': give host:port, [ipv6]:port or a gRPC"),
        (["--redis-url", "http://a"], "is 'http://a': give redis://host:port/database"),
        (["--tls-cert", "/no/such"], "--tls-cert (MINMO_TLS_CERT) is '/no/such': path does not"),
        (["--tls-cert", __file__], "--tls-cert and --tls-key go together"),
        (["--tls-client-ca", __file__], "--tls-client-ca needs --tls-cert and --tls-key"),
        (["--upstream-key", __file__], "--upstream-cert and --upstream-key go together"),
        (["--ready-file", "/no/such/file"], "is '/no/such/file': its folder does not exist"),
        (["--token", ""], "--token (MINMO_TOKEN): a token is 1 to 4096 characters"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        OrchestratorSettings.load("minmo-orchestrator", arguments)
    assert exit_.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("minmo-orchestrator: bad settings\n")
    assert message in printed
    assert "Traceback" not in printed


def test_an_unknown_flag_exits_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        ServiceSettings.load("minmo", ["--prot", "1"])
    assert exit_.value.code == 2
    assert "--prot" in capsys.readouterr().err


def test_all_bad_values_are_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINMO_MAX_STREAMS", "0")
    with pytest.raises(SettingsError, match=r"(?s)--port.*--max-streams"):
        ServiceSettings.parse("minmo", ["--port", "-1"])


def test_an_empty_token_in_the_environment_does_not_open_the_door(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MINMO_TOKEN", "")
    with pytest.raises(SettingsError, match="MINMO_TOKEN"):
        ServiceSettings.parse("minmo", [])


def test_secrets_show_in_no_message_and_no_representation() -> None:
    settings = OrchestratorSettings.parse("minmo", ["--token", "hush", "--upstream-token", "hush"])
    assert "hush" not in repr(settings)
    assert "hush" not in settings.model_dump_json()
    for arguments in (["--token", "hush hush"], ["--redis-url", "http://me:hush@host"]):
        with pytest.raises(SettingsError) as error:
            OrchestratorSettings.parse("minmo", arguments)
        assert "hush" not in str(error.value)


@pytest.mark.parametrize(
    "address", ["encoder:7101", "127.0.0.1:7101", "[::1]:7101", "dns:///encoder:7101", "unix:/a/b"]
)
def test_addresses_are_grpc_targets(address: str) -> None:
    assert OrchestratorSettings(encoder_address=address).encoder_address == address


def test_the_ready_file_may_exist_already(tmp_path: Path) -> None:
    (tmp_path / "ready.json").write_text("{}")
    settings = ServiceSettings.parse("minmo", ["--ready-file", str(tmp_path / "ready.json")])
    assert settings.ready_file == tmp_path / "ready.json"


def test_a_password_is_in_no_log_and_no_message() -> None:
    url = "redis+sentinel://me:hunter2@one:1,two:2/name/3?sentinel_password=hunter3"
    settings = OrchestratorSettings(redis_url=url)
    assert settings.redis_url == url
    assert settings.model_dump(mode="json")["redis_url"] == (
        "redis+sentinel://***@one:1,two:2/name/3?sentinel_password=***"
    )
    with pytest.raises(SettingsError) as error:
        OrchestratorSettings.parse("orchestrator", ["--redis-url", url.replace("/name/3", "")])
    assert "hunter" not in str(error.value)
    assert "the name of the master" in str(error.value)
