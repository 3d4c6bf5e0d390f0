"""Audio as clients send it."""

from __future__ import annotations

from services.gateway.answer import decoded
from services.gateway.errors import EventError
from services.gateway.parsing import audio_bytes
from services.gateway.state import State

SAMPLE_BYTES = 2


def pcm_of(state: State, encoded: str, param: str) -> bytes:
    """The 16-bit PCM of audio in the session's format.

    Raises:
        EventError: it is not base64, or no whole number of samples; `param` names the field.
    """
    pcm = decoded(state.wanted.input_format, audio_bytes(encoded, param))
    if len(pcm) % SAMPLE_BYTES:
        raise EventError(
            "invalid_value",
            f"Invalid '{param}'. {len(pcm)} bytes are no whole number of 16-bit samples.",
            param=param,
        )
    return pcm
