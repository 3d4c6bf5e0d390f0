"""What a client may ask for, and what it is told when it asks for something else."""

from __future__ import annotations

import re

from minmo.rpc.errors import StatusError, invalid_argument
from minmo.v1 import common_pb2, conversation_pb2
from services.orchestrator.store import Settings

RATES_HZ = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
_MAX_SYSTEM_PROMPT_CHARACTERS = 2000
_MAX_INSTRUCT_CHARACTERS = 200
_MAX_VOICE_CHARACTERS = 100
_SILENCE_MS = (200, 5000)
_MAX_ANSWER_TOKENS = 1024
_MAX_TEMPERATURE = 2.0
_SESSION_ID = re.compile(r"s[0-9a-f]{24}")


def audio_format(audio: common_pb2.AudioFormat, field: str, *, channels: int) -> None:
    """Checks a format; at most `channels` channels. Raises INVALID_ARGUMENT naming the field."""
    encodings = (common_pb2.AUDIO_ENCODING_PCM_S16LE, common_pb2.AUDIO_ENCODING_PCM_F32LE)
    if audio.encoding not in encodings:
        raise invalid_argument(
            f"{field}.encoding",
            f"is {audio.encoding}",
            limit="AUDIO_ENCODING_PCM_S16LE or AUDIO_ENCODING_PCM_F32LE",
        )
    if audio.sample_rate_hz not in RATES_HZ:
        raise invalid_argument(
            f"{field}.sample_rate_hz",
            f"is {audio.sample_rate_hz} Hz",
            limit=", ".join(str(rate) for rate in RATES_HZ) + " Hz",
        )
    if not 1 <= audio.channels <= channels:
        raise invalid_argument(
            f"{field}.channels",
            f"is {audio.channels}",
            limit="1" if channels == 1 else f"1 to {channels}",
        )


def frame_bytes(audio: common_pb2.AudioFormat) -> int:
    """Bytes of one sample of all channels."""
    width = 4 if audio.encoding == common_pb2.AUDIO_ENCODING_PCM_F32LE else 2
    return width * audio.channels


def audio_data(data: bytes, audio: common_pb2.AudioFormat, *, max_seconds: float) -> None:
    """Checks one message's audio: whole frames, not too long. Raises INVALID_ARGUMENT."""
    frame = frame_bytes(audio)
    if len(data) % frame:
        raise invalid_argument(
            "audio.data",
            f"has {len(data)} bytes, which is no whole number of frames of {frame} bytes",
        )
    seconds = len(data) / frame / audio.sample_rate_hz
    if seconds > max_seconds:
        raise invalid_argument(
            "audio.data",
            f"holds {seconds:.1f} s of audio; send smaller frames, 20 ms is usual",
            limit=f"{max_seconds:g} s",
        )


def session_id(value: str) -> str:
    """A session id that could exist. Raises INVALID_ARGUMENT for one that could not."""
    if not _SESSION_ID.fullmatch(value):
        raise invalid_argument(
            "session_id", f"{value[:64]!r} is not a session id; CreateSession makes one"
        )
    return value


def session_settings(given: conversation_pb2.SessionSettings) -> Settings:
    """Settings of a session. Raises INVALID_ARGUMENT naming field, value and limit."""
    for field, text, limit in (
        ("system_prompt", given.system_prompt, _MAX_SYSTEM_PROMPT_CHARACTERS),
        ("instruct", given.instruct, _MAX_INSTRUCT_CHARACTERS),
        ("voice", given.voice, _MAX_VOICE_CHARACTERS),
    ):
        if len(text) > limit:
            raise invalid_argument(
                f"settings.{field}", f"has {len(text)} characters", limit=f"{limit} characters"
            )
    if given.max_answer_tokens > _MAX_ANSWER_TOKENS:
        raise _out_of("max_answer_tokens", given.max_answer_tokens, f"0 to {_MAX_ANSWER_TOKENS}")
    low, high = _SILENCE_MS
    if given.end_of_turn_silence_ms and not low <= given.end_of_turn_silence_ms <= high:
        raise _out_of(
            "end_of_turn_silence_ms", given.end_of_turn_silence_ms, f"0 or {low} to {high} ms"
        )
    if not 0 <= given.temperature <= _MAX_TEMPERATURE:
        raise _out_of("temperature", given.temperature, f"0 to {_MAX_TEMPERATURE:g}")
    return Settings(
        system_prompt=given.system_prompt,
        voice=given.voice,
        instruct=given.instruct,
        max_answer_tokens=given.max_answer_tokens,
        end_of_turn_silence_ms=given.end_of_turn_silence_ms,
        temperature=given.temperature,
        seed=given.seed,
    )


def _out_of(field: str, value: float, limit: str) -> StatusError:
    return invalid_argument(f"settings.{field}", f"is {value:g}", limit=limit)
