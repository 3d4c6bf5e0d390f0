"""Settings of the servers that replay: those of the services whose place they take, and a file."""

from __future__ import annotations

from pydantic import Field, FilePath

from minmo import settings

_RECORDING = "recording whose outputs are replayed"


class EncoderSettings(settings.EncoderSettings):
    """The encoder."""

    recording: FilePath = Field(description=_RECORDING)


class LlmSettings(settings.LlmSettings):
    """The LLM, without Triton."""

    recording: FilePath = Field(description=_RECORDING)


class VoiceDecoderSettings(settings.VoiceDecoderSettings):
    """The voice decoder."""

    recording: FilePath = Field(description=_RECORDING)
