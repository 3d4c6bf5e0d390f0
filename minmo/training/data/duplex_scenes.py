"""Scenes of simulated conversations: what sounds when, and what it means.

A scene is a recipe, not a recording: which clips are heard, from where to where, how loud, in which
room, and the times at which turns begin and end. Two channels of audio come of it
(`minmo.training.data.duplex_rendering`) when somebody listens. All times are in seconds of the
scene.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from minmo.training.config import to_table
from minmo.training.tables import build

SceneKind = Literal["turn", "pause", "filler", "go-on", "back-channel", "interruption", "noise"]
"""What a scene shows; see `minmo.training.data.duplex_planning`."""
Channel = Literal["user", "assistant"]
MadeSound = Literal["cough", "knock", "music", "hiss"]


@dataclass(frozen=True)
class Said:
    """A stretch of a clip, heard in a channel.

    Attributes:
        channel: whose.
        shard: folder of the clip's shard, from the folder of the scenes.
        clip: its id.
        start: where the stretch begins in the clip.
        end: where it ends there.
        at: when it begins in the scene.
        level: dB of full scale, the mean of what is speech in it.
    """

    channel: Channel
    shard: str
    clip: str
    start: float
    end: float
    at: float
    level: float


@dataclass(frozen=True)
class Sounding:
    """A sound that is no speech, made when the scene is heard, in the user's channel.

    Attributes:
        what: it is.
        at: when it begins.
        seconds: that it lasts.
        level: dB of full scale.
        seed: of what is drawn for it.
    """

    what: MadeSound
    at: float
    seconds: float
    level: float
    seed: int


@dataclass(frozen=True)
class Place:
    """Where the user sits.

    Attributes:
        noise: dB of full scale of a noise floor; None for silence.
        colour: of that noise.
        rt60: seconds in which the room's sound falls by 60 dB; None for no room.
        echo: dB by which the assistant's voice is softer in the user's microphone than it is said;
            None where it cannot be heard.
        echo_delay: seconds from the assistant's voice to its echo.
        seed: of what is drawn for it.
    """

    noise: float | None
    colour: Literal["white", "pink", "brown"]
    rt60: float | None
    echo: float | None
    echo_delay: float
    seed: int


@dataclass(frozen=True)
class Span:
    """A stretch of the scene."""

    start: float
    end: float


@dataclass(frozen=True)
class Spoken:
    """A turn.

    Attributes:
        start: of the first word.
        end: of the last word, or where it was cut off.
        text: of the whole turn.
        seconds: that the whole turn would last: more than from start to end where it was cut off.
    """

    start: float
    end: float
    text: str
    seconds: float


@dataclass(frozen=True)
class Pause:
    """Silence within a turn of the user.

    Attributes:
        start: end of the word before it.
        end: start of the word behind it.
        complete: whether what was said before it is a whole sentence.
    """

    start: float
    end: float
    complete: bool


@dataclass(frozen=True)
class Scene:
    """A stretch of a conversation.

    Attributes:
        kind: what it shows.
        speaker: who the user is.
        seconds: that it lasts.
        asked: what the user had said before it, which the assistant answers at its start; empty
            where the scene begins with the user.
        user: turns of the user, in order.
        assistant: turns of the assistant, in order.
        back_channels: of the user over the assistant: no turns.
        pauses: within turns of the user.
        said: every stretch of speech, with what is said in the background.
        sounds: that are no speech.
        place: where the user sits.
    """

    kind: SceneKind
    speaker: str
    seconds: float
    asked: str
    user: tuple[Spoken, ...]
    assistant: tuple[Spoken, ...]
    back_channels: tuple[Span, ...]
    pauses: tuple[Pause, ...]
    said: tuple[Said, ...]
    sounds: tuple[Sounding, ...]
    place: Place

    def to_json(self) -> dict[str, Any]:
        """Plain values; times to the millisecond, which is what the planner gives."""
        return to_table(self)


def scene_of(table: Any, where: str) -> Scene:
    """Reads what `Scene.to_json` gave.

    Raises:
        TrainingError: a field is missing or has a wrong value; says which.
    """
    return build(Scene, table, where)
