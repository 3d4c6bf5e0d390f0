"""The events that a client may send, checked."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_TEXT_CHARACTERS = 4000
MAX_INSTRUCTIONS_CHARACTERS = 2000
MAX_TOOLS = 64
MAX_ID_CHARACTERS = 512
_MAX_METADATA = 16

Id = Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARACTERS)]
Text = Annotated[str, Field(max_length=MAX_TEXT_CHARACTERS)]
Instructions = Annotated[str, Field(max_length=MAX_INSTRUCTIONS_CHARACTERS)]
Modalities = Annotated[list[Literal["text", "audio"]], Field(min_length=1, max_length=2)]
MaxTokens = Annotated[int, Field(ge=1, le=1_000_000)] | Literal["inf"]
Milliseconds = Annotated[int, Field(ge=0, le=86_400_000)]
Base64 = str


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


# --- settings


class AudioFormat(_Model):
    """``audio/pcm`` has 16 bits and 24 kHz; ``audio/pcmu`` and ``audio/pcma`` are G.711, 8 kHz.

    ``audio/opus`` is an extension: packets, each behind its length.
    """

    type: Literal["audio/pcm", "audio/pcmu", "audio/pcma", "audio/opus"] = "audio/pcm"
    rate: Literal[24000] | None = None


class Transcription(_Model):
    """Asks for the words of the user; how they are recognised is not the client's to say."""

    model: str | None = None
    language: str | None = None
    languages: list[str] | None = None
    prompt: str | None = None
    keywords: list[str] | None = None
    delay: str | None = None


class ServerVad(_Model):
    """A silence ends the user's turn."""

    type: Literal["server_vad"]
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    prefix_padding_ms: Milliseconds | None = None
    silence_duration_ms: Annotated[int, Field(ge=200, le=5000)] | None = None
    idle_timeout_ms: Milliseconds | None = None
    create_response: bool | None = None
    interrupt_response: bool | None = None


class SemanticVad(_Model):
    """What the user says ends the user's turn."""

    type: Literal["semantic_vad"]
    eagerness: Literal["low", "medium", "high", "auto"] | None = None
    create_response: bool | None = None
    interrupt_response: bool | None = None


class NoiseReduction(_Model):
    """Has no effect: the models hear what was sent."""

    type: str | None = None
    strength: float | None = None


class AudioInput(_Model):
    """What comes from the client."""

    format: AudioFormat | None = None
    noise_reduction: NoiseReduction | None = None
    transcription: Transcription | None = None
    turn_detection: Annotated[ServerVad | SemanticVad, Field(discriminator="type")] | None = None


class VoiceId(_Model):
    """A voice by its id."""

    id: Annotated[str, Field(min_length=1, max_length=100)]


Voice = Annotated[str, Field(min_length=1, max_length=100)] | VoiceId


class AudioOutput(_Model):
    """What goes to the client."""

    format: AudioFormat | None = None
    voice: Voice | None = None
    speed: float | None = None


class Audio(_Model):
    """Both directions."""

    input: AudioInput | None = None
    output: AudioOutput | None = None


class Tool(_Model):
    """A function that the assistant may call."""

    type: Literal["function"]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: Annotated[str, Field(max_length=1000)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedTool(_Model):
    """The function that must be called."""

    type: Literal["function"]
    name: Annotated[str, Field(min_length=1, max_length=64)]


ToolChoice = Literal["auto", "none", "required"] | NamedTool
Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS)]


class Minmo(_Model):
    """Settings of MinMo's own that the protocol has no place for."""

    events: bool = True
    instruct: Annotated[str, Field(max_length=200)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None


class Session(_Model):
    """The part of the settings that a client changes."""

    type: Literal["realtime"] | None = None
    id: str | None = None
    object: str | None = None
    expires_at: int | None = None
    model: str | None = None
    output_modalities: Modalities | None = None
    instructions: Instructions | None = None
    audio: Audio | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    max_output_tokens: MaxTokens | None = None
    parallel_tool_calls: bool | None = None
    reasoning: dict[str, Any] | None = None
    tracing: Literal["auto"] | dict[str, Any] | None = None
    truncation: Literal["auto", "disabled"] | dict[str, Any] | None = None
    include: list[str] | None = None
    prompt: dict[str, Any] | None = None
    minmo: bool | Minmo | None = None


# --- items


class Content(_Model):
    """A part of a message."""

    type: Literal["input_text", "input_audio", "input_image", "output_text", "output_audio", "text"]
    text: Text | None = None
    audio: Base64 | None = None
    transcript: Text | None = None
    image_url: str | None = None
    detail: str | None = None


class _Item(_Model):
    id: Id | None = None
    object: str | None = None
    status: Literal["completed", "incomplete", "in_progress"] | None = None


class Message(_Item):
    """What somebody said."""

    type: Literal["message"]
    role: Literal["user", "assistant", "system"]
    content: Annotated[list[Content], Field(min_length=1, max_length=64)]


class FunctionCall(_Item):
    """A call that the assistant has made."""

    type: Literal["function_call"]
    name: Annotated[str, Field(min_length=1, max_length=64)]
    arguments: Text
    call_id: Id | None = None


class FunctionCallOutput(_Item):
    """What a call returned."""

    type: Literal["function_call_output"]
    call_id: Id
    output: Text


Item = Annotated[Message | FunctionCall | FunctionCallOutput, Field(discriminator="type")]


# --- events


class Event(_Model):
    """What all events have."""

    event_id: Annotated[str, Field(max_length=MAX_ID_CHARACTERS)] | None = None


class SessionUpdate(Event):
    """Changes settings."""

    type: Literal["session.update"]
    session: Session


class Append(Event):
    """Audio of the microphone."""

    type: Literal["input_audio_buffer.append"]
    audio: Base64


class Commit(Event):
    """The user's turn ends here."""

    type: Literal["input_audio_buffer.commit"]


class Clear(Event):
    """Forgets the audio since the last turn."""

    type: Literal["input_audio_buffer.clear"]


class ItemCreate(Event):
    """Adds to the history."""

    type: Literal["conversation.item.create"]
    previous_item_id: Id | None = None
    item: Item


class ItemRetrieve(Event):
    """Asks for an item."""

    type: Literal["conversation.item.retrieve"]
    item_id: Id


class ItemTruncate(Event):
    """Says how far an item was heard."""

    type: Literal["conversation.item.truncate"]
    item_id: Id
    content_index: Literal[0]
    audio_end_ms: Milliseconds


class ItemDelete(Event):
    """Removes an item."""

    type: Literal["conversation.item.delete"]
    item_id: Id


class ResponseAudioOutput(_Model):
    """How an answer sounds."""

    format: AudioFormat | None = None
    voice: Voice | None = None


class ResponseAudio(_Model):
    """How an answer sounds."""

    output: ResponseAudioOutput | None = None


class ResponseParameters(_Model):
    """What is different in an answer."""

    instructions: Instructions | None = None
    metadata: (
        Annotated[
            dict[
                Annotated[str, Field(max_length=64)],
                Annotated[str, Field(max_length=512)],
            ],
            Field(max_length=_MAX_METADATA),
        ]
        | None
    ) = None
    output_modalities: Modalities | None = None
    max_output_tokens: MaxTokens | None = None
    tool_choice: ToolChoice | None = None
    tools: Tools | None = None
    audio: ResponseAudio | None = None
    conversation: str | None = None
    input: list[dict[str, Any]] | None = None
    temperature: float | None = None
    parallel_tool_calls: bool | None = None
    reasoning: dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None


class ResponseCreate(Event):
    """Asks for an answer."""

    type: Literal["response.create"]
    response: ResponseParameters | None = None


class ResponseCancel(Event):
    """Stops the answer."""

    type: Literal["response.cancel"]
    response_id: Id | None = None


class OutputClear(Event):
    """Stops the loudspeaker, where the server has it (WebRTC)."""

    type: Literal["output_audio_buffer.clear"]


class Playback(Event):
    """How far an item has been played (an extension)."""

    type: Literal["minmo.playback"]
    item_id: Id
    played_samples: Annotated[int, Field(ge=0, lt=2**62)]
    finished: bool = False


ClientEvent = (
    SessionUpdate
    | Append
    | Commit
    | Clear
    | ItemCreate
    | ItemRetrieve
    | ItemTruncate
    | ItemDelete
    | ResponseCreate
    | ResponseCancel
    | OutputClear
    | Playback
)
