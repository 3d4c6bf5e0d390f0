"""Whether what a deployment tells a service is what that service can be told.

Compose files and Kubernetes manifests set variables and flags; a name with a typing error would be
ignored without a word, and a bad value found only when the container starts.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args
from unittest import mock

from pydantic import FilePath, ValidationError
from pydantic_settings import BaseSettings

from minmo.settings import (
    ENV_PREFIX,
    EncoderSettings,
    GatewaySettings,
    LlmModelSettings,
    LlmSettings,
    OrchestratorSettings,
    ServiceSettings,
    SettingsError,
    VoiceDecoderSettings,
)

SETTINGS: dict[str, type[BaseSettings]] = {
    "encoder": EncoderSettings,
    "llm": LlmSettings,
    "voice-decoder": VoiceDecoderSettings,
    "orchestrator": OrchestratorSettings,
    "gateway": GatewaySettings,
    "triton": LlmModelSettings,
}
"""What each container reads, by its name in compose and Kubernetes."""

# Variables of the library, which no class of settings has.
_LIBRARY_VARIABLES = {"MINMO_HOME", "MINMO_SOURCE"}


def problems(
    service: str, environment: Mapping[str, str], arguments: Sequence[str] = ()
) -> list[str]:
    """What is wrong with the settings of a container; nothing if it could start with them.

    Files that they name are taken for granted: they exist in the container only.

    Args:
        service: a name of `SETTINGS`.
        environment: all variables that the deployment sets.
        arguments: flags, which follow the service's module.
    """
    settings = SETTINGS[service]
    known = {_variable(settings, field) for field in settings.model_fields} | _LIBRARY_VARIABLES
    unknown = [
        f"{service}: {name} is no setting of it"
        for name in sorted(environment)
        if name.startswith(ENV_PREFIX) and name not in known
    ]
    return [*unknown, *_refusals(service, environment, arguments)]


def _refusals(
    service: str, environment: Mapping[str, str], arguments: Sequence[str]
) -> Iterator[str]:
    """What the service itself would say, and end."""
    settings = SETTINGS[service]
    files = {field for field, info in settings.model_fields.items() if _is_file(info.annotation)}
    variables = {_variable(settings, field) for field in files}
    given = {name: __file__ if name in variables else value for name, value in environment.items()}
    said = io.StringIO()
    with mock.patch.dict(os.environ, given, clear=True), contextlib.redirect_stderr(said):
        try:
            if issubclass(settings, ServiceSettings):
                settings.parse(service, _with_files(arguments, files))
            else:
                settings()
        except SettingsError as error:
            yield str(error)
        except ValidationError as error:
            yield f"{service}: {error}"
        except SystemExit:
            # An unknown flag.
            yield said.getvalue().strip().splitlines()[-1]


def _variable(settings: type[BaseSettings], field: str) -> str:
    return f"{settings.model_config['env_prefix']}{field}".upper()


def _is_file(annotation: Any) -> bool:
    return FilePath in (annotation, *get_args(annotation))


def _with_files(arguments: Sequence[str], files: set[str]) -> list[str]:
    """The arguments, with a file that exists here in the place of each that is named."""
    flags = {f"--{field.replace('_', '-')}" for field in files}
    given = list(arguments)
    for place, argument in enumerate(given):
        flag, equals, _ = argument.partition("=")
        if flag in flags and equals:
            given[place] = f"{flag}={__file__}"
        elif flag in flags and place + 1 < len(given):
            given[place + 1] = __file__
    return given
