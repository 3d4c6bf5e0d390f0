"""The check of what a deployment tells a service: see `tests.deployment_settings`."""

from __future__ import annotations

import pytest

from tests.deployment_settings import problems


@pytest.mark.parametrize(
    ("service", "environment", "arguments"),
    [
        ("encoder", {"MINMO_PORT": "7101", "MINMO_HOME": "/var/lib/minmo", "PATH": "/bin"}, []),
        ("gateway", {"MINMO_TLS_CERT": "/tls/tls.crt", "MINMO_TLS_KEY": "/tls/tls.key"}, []),
        ("gateway", {}, ["--tls-cert", "/tls/tls.crt", "--tls-key=/tls/tls.key"]),
        ("triton", {"MINMO_LLM_SLOTS": "32", "OMP_NUM_THREADS": "4"}, []),
    ],
)
def test_settings_that_a_service_has_are_fine(
    service: str, environment: dict[str, str], arguments: list[str]
) -> None:
    assert problems(service, environment, arguments) == []


@pytest.mark.parametrize(
    ("service", "environment", "arguments", "told"),
    [
        ("encoder", {"MINMO_PRSET": "mini"}, [], "MINMO_PRSET is no setting of it"),
        ("encoder", {"MINMO_TRITON_ADDRESS": "a:1"}, [], "MINMO_TRITON_ADDRESS is no setting"),
        ("triton", {"MINMO_PRESET": "mini"}, [], "MINMO_PRESET is no setting of it"),
        ("triton", {"MINMO_LLM_SLOTS": "0"}, [], "slots"),
        ("llm", {"MINMO_PORT": "many"}, [], "--port (MINMO_PORT) is 'many'"),
        ("llm", {}, ["--prset", "mini"], "--prset"),
        ("gateway", {"MINMO_TLS_CERT": "/tls/tls.crt"}, [], "go together"),
    ],
)
def test_what_a_service_would_ignore_or_refuse_is_named(
    service: str, environment: dict[str, str], arguments: list[str], told: str
) -> None:
    (problem,) = problems(service, environment, arguments)
    assert problem.startswith(service)
    assert told in problem
