"""Audio as clients send it."""

from __future__ import annotations

from minmo.audio.pcm import AudioError
from minmo.v1 import common_pb2
from services.gateway.codecs import Decoder, Format, decoder_of
from services.gateway.errors import EventError
from services.gateway.state import Recording, State

MAX_APPEND_SECONDS = 10.0
"""Longest audio in one event, of formats that a few bytes of can be hours."""
MAX_RECORDING_SECONDS = 600.0
"""The same of an item."""
_SAMPLE_BYTES = 2


class Microphone:
    """What a client's microphone gives, from event to event.

    Args:
        state: of the connection, which says the format.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._format: Format | None = None
        self._decoder: Decoder | None = None

    def pcm(self, data: bytes, param: str) -> bytes:
        """The 16-bit PCM of the next audio.

        Raises:
            EventError: it is none in the session's format; `param` names the field.
        """
        wanted = self._state.wanted.input_format
        if self._decoder is None or wanted != self._format:
            self._format = wanted
            self._decoder = decoder_of(wanted, max_seconds=MAX_APPEND_SECONDS)
        return _decoded(self._decoder, data, param)


def pcm_of(recording: Recording) -> bytes:
    """The 16-bit PCM of an item's audio; takes its time. Raises EventError: it is none."""
    decoder = decoder_of(recording.audio_format, max_seconds=MAX_RECORDING_SECONDS)
    return _decoded(decoder, recording.data, recording.param)


def seconds_of(state: State, audio: common_pb2.AudioChunk) -> float:
    """Length of audio on its way to the orchestrator."""
    return len(audio.data) / _SAMPLE_BYTES / state.wanted.input_rate_hz


def _decoded(decoder: Decoder, data: bytes, param: str) -> bytes:
    try:
        return decoder.decode(data)
    except AudioError as error:
        raise EventError("invalid_value", f"Invalid '{param}': {error}.", param=param) from None
