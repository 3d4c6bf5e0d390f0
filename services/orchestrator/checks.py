"""What a client may ask for, and what it is told when it asks for something else."""

from __future__ import annotations

import re
from collections.abc import Sequence

from minmo.audio.opus import available as opus_available
from minmo.audio.pcm import OPUS_RATES_HZ, SAMPLE_RATES_HZ
from minmo.rpc.errors import StatusError, invalid_argument
from minmo.v1 import common_pb2, conversation_pb2
from services.orchestrator.session_settings import (
    SILENCE_MS,
    Settings,
    Tool,
    ToolChoice,
    TurnDetection,
)
from services.orchestrator.tools import check_schema

_MAX_SYSTEM_PROMPT_CHARACTERS = 2000
_MAX_INSTRUCT_CHARACTERS = 200
_MAX_VOICE_CHARACTERS = 100
_MAX_ANSWER_TOKENS = 1024
_MAX_TEMPERATURE = 2.0
_MAX_TOOLS = 64
_MAX_DESCRIPTION_CHARACTERS = 1000
_MAX_SCHEMA_CHARACTERS = 8000
_MAX_ALL_TOOLS_CHARACTERS = 32_000
_TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SESSION_ID = re.compile(r"s[0-9a-f]{24}")


def audio_format(
    audio: common_pb2.AudioFormat, field: str, *, channels: int, opus: bool = False
) -> None:
    """Checks a format; at most `channels` channels. Raises INVALID_ARGUMENT naming the field."""
    encodings = [common_pb2.AUDIO_ENCODING_PCM_S16LE, common_pb2.AUDIO_ENCODING_PCM_F32LE]
    # It is an extra of the installation.
    if opus and opus_available():
        encodings.append(common_pb2.AUDIO_ENCODING_OPUS)
    if audio.encoding not in encodings:
        raise invalid_argument(
            f"{field}.encoding",
            f"is {audio.encoding}",
            limit=" or ".join(common_pb2.AudioEncoding.Name(encoding) for encoding in encodings),
        )
    is_opus = audio.encoding == common_pb2.AUDIO_ENCODING_OPUS
    rates = OPUS_RATES_HZ if is_opus else SAMPLE_RATES_HZ
    if audio.sample_rate_hz not in rates:
        raise invalid_argument(
            f"{field}.sample_rate_hz",
            f"is {audio.sample_rate_hz} Hz",
            limit=", ".join(str(rate) for rate in rates) + " Hz",
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


def instruct(text: str, field: str) -> None:
    """Checks words that say how to speak. Raises INVALID_ARGUMENT naming value and limit."""
    if len(text) > _MAX_INSTRUCT_CHARACTERS:
        raise invalid_argument(
            field, f"has {len(text)} characters", limit=f"{_MAX_INSTRUCT_CHARACTERS} characters"
        )


def session_settings(given: conversation_pb2.SessionSettings) -> Settings:
    """Settings of a session. Raises INVALID_ARGUMENT naming field, value and limit."""
    instruct(given.instruct, "settings.instruct")
    for field, text, limit in (
        ("system_prompt", given.system_prompt, _MAX_SYSTEM_PROMPT_CHARACTERS),
        ("voice", given.voice, _MAX_VOICE_CHARACTERS),
    ):
        if len(text) > limit:
            raise invalid_argument(
                f"settings.{field}", f"has {len(text)} characters", limit=f"{limit} characters"
            )
    if given.max_answer_tokens > _MAX_ANSWER_TOKENS:
        raise _out_of("max_answer_tokens", given.max_answer_tokens, f"0 to {_MAX_ANSWER_TOKENS}")
    low, high = SILENCE_MS
    if given.end_of_turn_silence_ms and not low <= given.end_of_turn_silence_ms <= high:
        raise _out_of(
            "end_of_turn_silence_ms", given.end_of_turn_silence_ms, f"0 or {low} to {high} ms"
        )
    if not 0 <= given.temperature <= _MAX_TEMPERATURE:
        raise _out_of("temperature", given.temperature, f"0 to {_MAX_TEMPERATURE:g}")
    tools = _tools(given.tools)
    return Settings(
        system_prompt=given.system_prompt,
        voice=given.voice,
        instruct=given.instruct,
        max_answer_tokens=given.max_answer_tokens,
        end_of_turn_silence_ms=given.end_of_turn_silence_ms,
        temperature=given.temperature,
        seed=given.seed,
        turn_detection=_turn_detection(given.turn_detection),
        tools=tools,
        tool_choice=tool_choice(given.tool_choice, tools, "settings.tool_choice"),
        text_only=given.text_only,
    )


def is_tool_name(name: str) -> bool:
    """Whether a tool may have this name."""
    return bool(_TOOL_NAME.fullmatch(name))


def answer_tokens(value: int, field: str) -> int:
    """A limit of an answer's tokens. Raises INVALID_ARGUMENT."""
    if value > _MAX_ANSWER_TOKENS:
        raise invalid_argument(field, f"is {value}", limit=f"0 to {_MAX_ANSWER_TOKENS}")
    return value


def instructions(text: str, field: str) -> str:
    """Instructions in the place of the system prompt. Raises INVALID_ARGUMENT."""
    limit = _MAX_SYSTEM_PROMPT_CHARACTERS
    if len(text) > limit:
        raise invalid_argument(
            field, f"has {len(text)} characters", limit=f"{limit} characters", reason="TOO_LONG"
        )
    return text


def tool_choice(
    given: conversation_pb2.ToolChoice, tools: tuple[Tool, ...], field: str
) -> ToolChoice:
    """A choice of tools that can be made. Raises INVALID_ARGUMENT."""
    kinds = conversation_pb2.ToolChoice
    if given.kind not in kinds.Kind.values():
        raise invalid_argument(f"{field}.kind", f"is {given.kind}", limit="a kind of ToolChoice")
    names = [tool.name for tool in tools]
    if given.kind == kinds.KIND_NAMED and given.name not in names:
        raise invalid_argument(
            f"{field}.name",
            f"{given.name[:64]!r} is not one of the session's tools",
            limit=", ".join(names)[:200] or "there are none",
        )
    if given.kind == kinds.KIND_REQUIRED and not tools:
        raise invalid_argument(f"{field}.kind", "is KIND_REQUIRED, but the session has no tools")
    return ToolChoice(given.kind, given.name if given.kind == kinds.KIND_NAMED else "")


def _turn_detection(given: conversation_pb2.TurnDetection) -> TurnDetection:
    if given.kind not in conversation_pb2.TurnDetection.Kind.values():
        raise invalid_argument(
            "settings.turn_detection.kind", f"is {given.kind}", limit="a kind of TurnDetection"
        )
    if not 0 <= given.eagerness <= 1:
        raise _out_of("turn_detection.eagerness", given.eagerness, "0 to 1")
    return TurnDetection(
        given.kind, given.wait_for_create_response, given.keep_talking, given.eagerness
    )


def _tools(given: Sequence[conversation_pb2.Tool]) -> tuple[Tool, ...]:
    if len(given) > _MAX_TOOLS:
        raise invalid_argument("settings.tools", f"has {len(given)} tools", limit=f"{_MAX_TOOLS}")
    names: set[str] = set()
    characters = 0
    for place, tool in enumerate(given):
        field = f"settings.tools[{place}]"
        if not _TOOL_NAME.fullmatch(tool.name):
            raise invalid_argument(
                f"{field}.name",
                f"is {tool.name[:80]!r}",
                limit="1 to 64 letters, digits, underscores and hyphens",
            )
        if tool.name in names:
            raise invalid_argument(f"{field}.name", f"{tool.name!r} is the name of two tools")
        names.add(tool.name)
        for name, text, limit in (
            ("description", tool.description, _MAX_DESCRIPTION_CHARACTERS),
            ("parameters_json", tool.parameters_json, _MAX_SCHEMA_CHARACTERS),
        ):
            characters += len(text)
            if len(text) > limit:
                raise invalid_argument(
                    f"{field}.{name}", f"has {len(text)} characters", limit=f"{limit} characters"
                )
        try:
            check_schema(tool.parameters_json)
        except ValueError as error:
            raise invalid_argument(f"{field}.parameters_json", str(error)) from None
    if characters > _MAX_ALL_TOOLS_CHARACTERS:
        raise invalid_argument(
            "settings.tools",
            f"have {characters} characters together",
            limit=f"{_MAX_ALL_TOOLS_CHARACTERS} characters",
        )
    return tuple(Tool(tool.name, tool.description, tool.parameters_json) for tool in given)


def _out_of(field: str, value: float, limit: str) -> StatusError:
    return invalid_argument(f"settings.{field}", f"is {value:g}", limit=limit)
