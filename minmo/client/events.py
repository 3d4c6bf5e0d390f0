"""What happens in a conversation, as the client learns it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, TypeAlias

from minmo.audio.pcm import Samples
from minmo.client.codecs import Incoming
from minmo.v1 import common_pb2, conversation_pb2

Outcome = Literal["completed", "interrupted", "failed", "unspecified"]
Role = Literal["system", "user", "assistant", "tool", "unspecified"]


class Happening(StrEnum):
    """What a `TurnEvent` tells; the contract's TurnEventKind says more of each."""

    USER_SPEECH_STARTED = "user_speech_started"
    USER_SPEECH_STOPPED = "user_speech_stopped"
    USER_TURN_ENDED = "user_turn_ended"
    ASSISTANT_STARTED = "assistant_started"
    ASSISTANT_FINISHED = "assistant_finished"
    INTERRUPTED = "interrupted"
    RECOVERING = "recovering"
    RECOVERED = "recovered"
    NOTHING_SAID = "nothing_said"
    INPUT_CLEARED = "input_cleared"
    UNKNOWN = "unknown"
    """From a server that knows more than this client."""


@dataclass(frozen=True)
class Ready:
    """The stream has its session.

    Attributes:
        voices: names of the voices that settings may choose, the default one first.
        keeps_audio: whether the server keeps the conversation's audio.
    """

    session_id: str
    resumed: bool
    turn_count: int
    mode: str
    voices: tuple[str, ...] = ()
    keeps_audio: bool = False


@dataclass(frozen=True)
class AudioReceived:
    """Audio of the assistant.

    Attributes:
        first_sample: position of `samples` in the utterance, at the output rate.
        samples: float32 [samples], one channel.
        marks: text tokens heard by a sample, as ``(token_count, sample)``.
        final: the utterance's last piece.
        at_seconds: when it came, on the monotonic clock.
    """

    utterance_id: str
    first_sample: int
    samples: Samples
    marks: tuple[tuple[int, int], ...]
    final: bool
    at_seconds: float


@dataclass(frozen=True)
class UserText:
    """What the user said: all of it so far."""

    turn_index: int
    text: str
    final: bool
    request_id: str = ""


@dataclass(frozen=True)
class AssistantText:
    """A piece of what the assistant says."""

    utterance_id: str
    token_index: int
    text: str
    request_id: str = ""


@dataclass(frozen=True)
class TurnEvent:
    """Something happened.

    Attributes:
        audio_ms: position in the user's audio, in milliseconds from the start of the stream.
        at_seconds: when it came, on the monotonic clock.
    """

    kind: Happening
    audio_ms: int
    utterance_id: str
    detail: str
    at_seconds: float
    request_id: str = ""


@dataclass(frozen=True)
class StopPlayback:
    """No more of an utterance is to be heard; a `Conversation`'s speaker has stopped it already."""

    utterance_id: str


@dataclass(frozen=True)
class Span:
    """A stretch of time on the way to the first audio, in milliseconds after the user's speech."""

    hop: str
    start_ms: float
    duration_ms: float


@dataclass(frozen=True)
class TurnReport:
    """How a turn of the assistant went; times are the server's, in milliseconds.

    Attributes:
        token2wav_ms: the end of the hop first_audio: from the first speech tokens until audio was
            made of them; 0 where the voice has none.
    """

    utterance_id: str
    user_turn_index: int
    assistant_turn_index: int
    outcome: Outcome
    heard_text: str
    generated_text: str
    first_audio_ms: float
    waterfall: tuple[Span, ...]
    token_count: int
    audio_ms: int
    voice_compute_ms: float
    generate_ms: float
    detail: str
    request_id: str = ""
    token2wav_ms: float = 0.0


@dataclass(frozen=True)
class ToolCall:
    """The assistant calls a tool; answer with `tool_result`, then `create_response`.

    Attributes:
        arguments_json: a JSON object that fits the tool's schema.
        turn_index: the assistant's turn that it is.
    """

    utterance_id: str
    call_id: str
    name: str
    arguments_json: str
    turn_index: int
    request_id: str = ""


@dataclass(frozen=True)
class SettingsUpdated:
    """The session behaves so from here on."""

    settings: conversation_pb2.SessionSettings
    request_id: str = ""


@dataclass(frozen=True)
class TurnAdded:
    """The history has a new turn, which nobody spoke."""

    turn_index: int
    role: Role
    text: str
    request_id: str = ""


@dataclass(frozen=True)
class TurnDeleted:
    """The history has lost a turn."""

    turn_index: int
    request_id: str = ""


@dataclass(frozen=True)
class TurnChanged:
    """Something else was heard of a turn of the assistant than it seemed.

    Attributes:
        text: what was heard of it, as the history has it now.
    """

    turn_index: int
    utterance_id: str
    text: str


@dataclass(frozen=True)
class Refused:
    """A request was not carried out; nothing has changed and the conversation goes on.

    Attributes:
        reason: in capitals, for programs; the contract's `Refused` lists them.
        message: what was wrong, and the limit, for people.
        field: what of the request it is about; empty for all of it.
        request_id: what the method returned that asked for it.
    """

    reason: str
    message: str
    field: str
    request_id: str


@dataclass(frozen=True)
class Disconnected:
    """The connection was lost; the client looks for the server, and drops what it would send."""

    reason: str


@dataclass(frozen=True)
class Reconnected:
    """The session goes on, in a new stream whose audio positions start at 0."""

    seconds: float
    ready: Ready = field(repr=False)


Event: TypeAlias = (
    Ready
    | AudioReceived
    | UserText
    | AssistantText
    | TurnEvent
    | StopPlayback
    | TurnReport
    | ToolCall
    | SettingsUpdated
    | TurnAdded
    | TurnDeleted
    | TurnChanged
    | Refused
    | Disconnected
    | Reconnected
)


def event_of(
    response: conversation_pb2.ConverseResponse, incoming: Incoming, at_seconds: float
) -> Event | None:
    """The event in a message of the server; None for a kind that this client does not know.

    Args:
        incoming: reads the audio in it.
        at_seconds: when it came, on the monotonic clock.

    Raises:
        AudioError: what should be audio is none.
    """
    request_id = response.request_id
    event: Event | None = None
    match response.WhichOneof("message"):
        case "ready":
            ready = response.ready
            event = Ready(
                ready.session_id,
                ready.resumed,
                ready.turn_count,
                ready.mode,
                tuple(ready.voices),
                ready.keeps_audio,
            )
        case "audio":
            event = _audio(response.audio, incoming, at_seconds)
        case "user_text":
            said = response.user_text
            event = UserText(said.turn_index, said.text, said.final, request_id)
        case "assistant_text":
            says = response.assistant_text
            event = AssistantText(says.utterance_id, says.token_index, says.text, request_id)
        case "event":
            told = response.event
            kind = _happening(told.kind)
            event = TurnEvent(
                kind, told.audio_ms, told.utterance_id, told.detail, at_seconds, request_id
            )
        case "stop_playback":
            event = StopPlayback(response.stop_playback.utterance_id)
        case "report":
            event = _report(response.report, request_id)
        case "tool_call":
            call = response.tool_call
            event = ToolCall(
                call.utterance_id,
                call.call_id,
                call.name,
                call.arguments_json,
                call.turn_index,
                request_id,
            )
        case "refused":
            no = response.refused
            event = Refused(no.reason, no.message, no.field, request_id)
        case _:
            event = _edited(response)
    return event


def _edited(response: conversation_pb2.ConverseResponse) -> Event | None:
    """The event in a message that tells of another setting or another history."""
    request_id = response.request_id
    match response.WhichOneof("message"):
        case "settings_updated":
            return SettingsUpdated(response.settings_updated.settings, request_id)
        case "turn_added":
            turn = response.turn_added.turn
            return TurnAdded(turn.index, _role(turn.role), turn.text, request_id)
        case "turn_deleted":
            return TurnDeleted(response.turn_deleted.turn_index, request_id)
        case "turn_changed":
            changed = response.turn_changed
            return TurnChanged(changed.turn.index, changed.utterance_id, changed.turn.text)
    return None


def _audio(
    audio: conversation_pb2.AudioOutput, incoming: Incoming, at_seconds: float
) -> AudioReceived:
    return AudioReceived(
        audio.utterance_id,
        audio.first_sample,
        incoming.decode(audio.utterance_id, audio.data),
        tuple((mark.token_count, mark.sample) for mark in audio.marks),
        audio.final,
        at_seconds,
    )


def _happening(kind: int) -> Happening:
    try:
        name = conversation_pb2.TurnEventKind.Name(kind)  # type: ignore[arg-type]
        return Happening(name.removeprefix("TURN_EVENT_KIND_").lower())
    except ValueError:
        return Happening.UNKNOWN


def _role(role: int) -> Role:
    roles: dict[int, Role] = {
        common_pb2.ROLE_SYSTEM: "system",
        common_pb2.ROLE_USER: "user",
        common_pb2.ROLE_ASSISTANT: "assistant",
        common_pb2.ROLE_TOOL: "tool",
    }
    return roles.get(role, "unspecified")


def _report(report: conversation_pb2.TurnReport, request_id: str) -> TurnReport:
    outcomes: dict[int, Outcome] = {
        conversation_pb2.TURN_OUTCOME_COMPLETED: "completed",
        conversation_pb2.TURN_OUTCOME_INTERRUPTED: "interrupted",
        conversation_pb2.TURN_OUTCOME_FAILED: "failed",
    }
    return TurnReport(
        utterance_id=report.utterance_id,
        user_turn_index=report.user_turn_index,
        assistant_turn_index=report.assistant_turn_index,
        outcome=outcomes.get(report.outcome, "unspecified"),
        heard_text=report.heard_text,
        generated_text=report.generated_text,
        first_audio_ms=report.first_audio_ms,
        waterfall=tuple(
            Span(span.hop, span.start_ms, span.duration_ms) for span in report.waterfall
        ),
        token_count=report.token_count,
        audio_ms=report.audio_ms,
        voice_compute_ms=report.voice_compute_ms,
        generate_ms=report.generate_ms,
        detail=report.detail,
        request_id=request_id,
        token2wav_ms=report.token2wav_ms,
    )
