"""The settings of a connection: as clients change them, as they see them, as MinMo takes them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from pydantic import BaseModel

from minmo.audio.opus import available as opus_available
from minmo.v1 import common_pb2, conversation_pb2
from minmo.v1.conversation_pb2 import SessionSettings, ToolChoice, TurnDetection
from services.gateway import client_events as events
from services.gateway.codecs import INPUT_RATES_HZ, OUTPUT_RATES_HZ, Format
from services.gateway.errors import EventError, not_supported

DEFAULT_MODEL = "minmo"
MAX_ANSWER_TOKENS = 1024
# Voices of another server's: who asks for one of them takes what there is.
_FOREIGN_VOICES = frozenset(
    ("alloy", "ash", "ballad", "coral", "echo", "sage", "shimmer", "verse", "marin", "cedar")
)
_EAGERNESS = {"low": 0.25, "medium": 0.5, "high": 0.9}


_DEFAULT_DETECTION = events.ServerVad(type="server_vad")


@dataclass(frozen=True)
class SessionConfig:
    """Settings as they are in force.

    Attributes:
        model: name that the client gave to the model; it changes nothing.
        text_only: answers are written.
        turn_detection: None leaves it to the client to end turns.
        transcription: None sends no words of the user.
        minmo: whether the client gets MinMo's own events.
    """

    model: str = DEFAULT_MODEL
    instructions: str = ""
    voice: str = ""
    input_format: Format = "audio/pcm"
    output_format: Format = "audio/pcm"
    text_only: bool = False
    turn_detection: events.ServerVad | events.SemanticVad | None = _DEFAULT_DETECTION
    transcription: events.Transcription | None = None
    tools: tuple[events.Tool, ...] = ()
    tool_choice: events.ToolChoice = "auto"
    max_output_tokens: int | Literal["inf"] = "inf"
    minmo: bool = False
    instruct: str = ""
    temperature: float = 0.0
    seed: int = 0

    @property
    def input_rate_hz(self) -> int:
        """Samples of the client's audio a second."""
        return INPUT_RATES_HZ[self.input_format]

    @property
    def output_rate_hz(self) -> int:
        """Samples of the assistant's audio a second."""
        return OUTPUT_RATES_HZ[self.output_format]

    @property
    def creates_responses(self) -> bool:
        """Whether a turn that has ended is answered unasked."""
        detection = self.turn_detection
        return detection is not None and detection.create_response is not False

    def updated(self, given: events.Session) -> Self:
        """With what a client changes; what it does not name stays.

        Raises:
            EventError: it asks for what is not supported.
        """
        _refuse(given)
        changes: dict[str, Any] = {}
        for name in ("model", "instructions", "max_output_tokens", "tool_choice"):
            if _named(given, name):
                value = getattr(given, name)
                changes[name] = getattr(SessionConfig, name) if value is None else value
        if _named(given, "tools"):
            changes["tools"] = tuple(given.tools or ())
        if given.output_modalities is not None:
            changes["text_only"] = is_text_only(given.output_modalities)
        if given.audio is not None:
            changes |= _audio_changes(given.audio)
        if isinstance(given.minmo, bool):
            changes["minmo"] = given.minmo
        elif given.minmo is not None:
            changes["minmo"] = given.minmo.events
            for name in ("instruct", "temperature", "seed"):
                if (value := getattr(given.minmo, name)) is not None:
                    changes[name] = value
        config = replace(self, **changes)
        check_tool_choice(config.tool_choice, config.tools, "session.tool_choice")
        return config

    def to_proto(self) -> SessionSettings:
        """The same for the orchestrator."""
        return SessionSettings(
            system_prompt=self.instructions,
            voice="" if self.voice in _FOREIGN_VOICES else self.voice,
            instruct=self.instruct,
            max_answer_tokens=answer_tokens(self.max_output_tokens),
            end_of_turn_silence_ms=getattr(self.turn_detection, "silence_duration_ms", None) or 0,
            temperature=self.temperature,
            seed=self.seed,
            turn_detection=self._detection(),
            tools=[_tool(tool) for tool in self.tools],
            tool_choice=tool_choice(self.tool_choice),
            text_only=self.text_only,
        )

    def audio_formats(self) -> tuple[common_pb2.AudioFormat, common_pb2.AudioFormat]:
        """Input's and output's, between gateway and orchestrator."""
        input_format, output_format = (
            common_pb2.AudioFormat(
                encoding=common_pb2.AUDIO_ENCODING_PCM_S16LE, sample_rate_hz=rate, channels=1
            )
            for rate in (self.input_rate_hz, self.output_rate_hz)
        )
        return input_format, output_format

    def to_object(self, session_id: str, expires_at: int) -> dict[str, Any]:
        """The protocol's session: what is in force, null where something has no effect.

        Args:
            session_id: of the connection.
            expires_at: when it is closed, in seconds since 1970.
        """
        transcription = self.transcription
        return {
            "type": "realtime",
            "object": "realtime.session",
            "id": session_id,
            "model": self.model,
            "output_modalities": self.modalities,
            "instructions": self.instructions,
            "audio": {
                "input": {
                    "format": format_object(self.input_format),
                    "noise_reduction": None,
                    "transcription": None
                    if transcription is None
                    else {"model": transcription.model, "language": transcription.language},
                    "turn_detection": self._detection_object(),
                },
                "output": self.output_object | {"speed": 1.0},
            },
            "tools": [tool.model_dump(exclude={"strict"}) for tool in self.tools],
            "tool_choice": _dumped(self.tool_choice),
            "max_output_tokens": self.max_output_tokens,
            "truncation": "auto",
            "tracing": None,
            "prompt": None,
            "include": None,
            "expires_at": expires_at,
        } | (
            {
                "minmo": {
                    "events": True,
                    "instruct": self.instruct,
                    "temperature": self.temperature,
                    "seed": self.seed,
                }
            }
            if self.minmo
            else {}
        )

    @property
    def modalities(self) -> list[str]:
        """``text`` or ``audio``: an answer that is spoken has a transcript in any case."""
        return ["text"] if self.text_only else ["audio"]

    @property
    def output_object(self) -> dict[str, Any]:
        """How answers sound, as sessions and responses say it."""
        return {"format": format_object(self.output_format), "voice": self.voice or "default"}

    def _detection(self) -> TurnDetection:
        detection = self.turn_detection
        if detection is None:
            return TurnDetection(kind=TurnDetection.KIND_CLIENT)
        made = TurnDetection(
            kind=TurnDetection.KIND_SILENCE,
            wait_for_create_response=detection.create_response is False,
            keep_talking=detection.interrupt_response is False,
        )
        if isinstance(detection, events.SemanticVad):
            made.kind = TurnDetection.KIND_SEMANTIC
            made.eagerness = _EAGERNESS.get(detection.eagerness or "auto", 0.0)
        return made

    def _detection_object(self) -> dict[str, Any] | None:
        detection = self.turn_detection
        if detection is None:
            return None
        common = {
            "type": detection.type,
            "create_response": detection.create_response is not False,
            "interrupt_response": detection.interrupt_response is not False,
        }
        if isinstance(detection, events.SemanticVad):
            return common | {"eagerness": detection.eagerness or "auto"}
        return common | {
            "threshold": 0.5 if detection.threshold is None else detection.threshold,
            "prefix_padding_ms": 300
            if detection.prefix_padding_ms is None
            else detection.prefix_padding_ms,
            "silence_duration_ms": detection.silence_duration_ms or 500,
            "idle_timeout_ms": None,
        }


def is_text_only(modalities: list[Literal["text", "audio"]]) -> bool:
    """Whether an answer in these modalities has no audio."""
    return "audio" not in modalities


def answer_tokens(limit: int | Literal["inf"]) -> int:
    """A limit of tokens as the orchestrator takes it; 0 is its own."""
    return 0 if limit == "inf" else min(limit, MAX_ANSWER_TOKENS)


def tool_choice(choice: events.ToolChoice) -> ToolChoice:
    """The same for the orchestrator."""
    if isinstance(choice, events.NamedTool):
        return ToolChoice(kind=ToolChoice.KIND_NAMED, name=choice.name)
    kinds = {
        "auto": ToolChoice.KIND_UNSPECIFIED,
        "none": ToolChoice.KIND_NONE,
        "required": ToolChoice.KIND_REQUIRED,
    }
    return ToolChoice(kind=kinds[choice])


def check_tool_choice(
    choice: events.ToolChoice, tools: tuple[events.Tool, ...], param: str
) -> None:
    """Raises `EventError` for a choice of a tool that there is not."""
    names = [tool.name for tool in tools]
    if len(set(names)) < len(names):
        raise EventError("invalid_value", "Two tools have the same name.", param="session.tools")
    if isinstance(choice, events.NamedTool) and choice.name not in names:
        raise EventError("invalid_value", f"There is no tool '{choice.name}'.", param=param)


def format_object(audio_format: Format) -> dict[str, Any]:
    """The protocol's audio format."""
    rate = {"rate": 24_000} if audio_format == "audio/pcm" else {}
    return {"type": audio_format} | rate


def _refuse(given: events.Session) -> None:
    if given.prompt is not None:
        raise not_supported("session.prompt", "Stored prompts are not supported.")
    if given.include:
        raise not_supported("session.include", "Log probabilities are not supported.")
    for name in ("input", "output"):
        part = getattr(given.audio, name, None)
        if part is not None and part.format is not None:
            _check_format(part.format, f"session.audio.{name}.format")
    output = given.audio.output if given.audio is not None else None
    if output is not None and output.speed not in (None, 1, 1.0):
        raise not_supported(
            "session.audio.output.speed", "The speed of speech cannot be changed: leave it at 1."
        )


def _check_format(given: events.AudioFormat, param: str) -> None:
    if given.type == "audio/opus" and not opus_available():
        raise not_supported(
            param, "This server has no Opus: it is installed by pip install 'minmo[opus]'."
        )


def _audio_changes(audio: events.Audio) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if (given := audio.input) is not None:
        if given.format is not None:
            changes["input_format"] = given.format.type
        for name in ("transcription", "turn_detection"):
            if _named(given, name):
                changes[name] = getattr(given, name)
    if (wanted := audio.output) is not None:
        if wanted.format is not None:
            changes["output_format"] = wanted.format.type
        if _named(wanted, "voice"):
            voice = wanted.voice
            changes["voice"] = voice.id if isinstance(voice, events.VoiceId) else voice or ""
    return changes


def _tool(tool: events.Tool) -> conversation_pb2.Tool:
    return conversation_pb2.Tool(
        name=tool.name,
        description=tool.description or "",
        parameters_json=json.dumps(tool.parameters or {"type": "object", "properties": {}}),
    )


def _dumped(value: object) -> Any:
    return value.model_dump() if isinstance(value, BaseModel) else value


def _named(model: BaseModel, name: str) -> bool:
    return name in model.model_fields_set
