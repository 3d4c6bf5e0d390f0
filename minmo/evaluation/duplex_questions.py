"""What whoever decides who speaks is asked in a scene, and how it is told right from wrong.

After Full-Duplex-Bench (Lin et al., arXiv 2503.04721): nobody should answer in a pause, somebody
should answer at the end of a turn, and soon; a back-channel should stop nothing, an interruption
should. Each is a stretch of the scene in which the floor is taken or not. Stretches do not depend
on what was decided before them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

LINGERS_SECONDS = 0.6
"""Behind speech over an answer in which it may still stop that answer, as in the orchestrator."""

Wanted = Literal["answer", "stop"]
"""Assistant turn-taking, user turn-taking."""
Kind = Literal[
    "pause",
    "within",
    "end",
    "end of interruption",
    "noise",
    "interruption",
    "back-channel",
    "other speech",
    "other sound",
    "nobody",
]
"""What happens in a stretch.

| kind | taking the floor is | |
| --- | --- | --- |
| pause | wrong | a silence within a turn |
| within | wrong | a whole turn, from its first word to its last |
| end | right | from the end of a turn on |
| end of interruption | right | the same, of a turn that took the floor from the assistant |
| noise | wrong | before the user has said anything |
| interruption | right | from its start on, over an answer |
| back-channel | wrong | over an answer |
| other speech | wrong | of somebody in the background, over an answer |
| other sound | wrong | that is no speech, over an answer |
| nobody | wrong | an answer, until anybody else is heard: its echo must not stop it |
"""


class Stretch(Protocol):
    """From when to when, in seconds."""

    @property
    def start(self) -> float:
        """Its first moment."""

    @property
    def end(self) -> float:
        """Its last one."""


class Said(Protocol):
    """A stretch of a clip, heard in a channel."""

    @property
    def channel(self) -> str:
        """`user` or `assistant`."""

    @property
    def at(self) -> float:
        """When it begins in the scene."""

    @property
    def start(self) -> float:
        """Where it begins in the clip."""

    @property
    def end(self) -> float:
        """Where it ends there."""


class Sounding(Protocol):
    """A sound that is no speech."""

    @property
    def at(self) -> float:
        """When it begins."""

    @property
    def seconds(self) -> float:
        """That it lasts."""


class Scene(Protocol):
    """A simulated conversation, as `minmo data duplex` makes it."""

    @property
    def kind(self) -> str:
        """What it shows."""

    @property
    def seconds(self) -> float:
        """That it lasts."""

    @property
    def user(self) -> Sequence[Stretch]:
        """Turns of the user, in order."""

    @property
    def assistant(self) -> Sequence[Stretch]:
        """Turns of the assistant, in order."""

    @property
    def back_channels(self) -> Sequence[Stretch]:
        """Of the user over the assistant."""

    @property
    def pauses(self) -> Sequence[Stretch]:
        """Silences within turns of the user."""

    @property
    def said(self) -> Sequence[Said]:
        """Every stretch of speech."""

    @property
    def sounds(self) -> Sequence[Sounding]:
        """What is no speech."""


@dataclass(frozen=True)
class Question:
    """A stretch in which the floor is taken or not.

    Attributes:
        kind: what happens.
        wanted: which of the two decisions takes the floor.
        start: seconds of the scene, from which delays count too.
        end: from here on it is too late.
    """

    kind: Kind
    wanted: Wanted
    start: float
    end: float


def questions(scene: Scene) -> Iterator[Question]:
    """All that is asked in a scene."""
    starts = sorted(one.start for one in (*scene.user, *scene.assistant))
    for pause in scene.pauses:
        yield Question("pause", "answer", pause.start, pause.end)
    for turn in scene.user:
        until = next((start for start in starts if start >= turn.end), scene.seconds)
        interrupts = _over(scene, turn.start)
        yield Question("within", "answer", turn.start, turn.end)
        yield Question("end", "answer", turn.end, until)
        if interrupts is not None:
            yield Question("end of interruption", "answer", turn.end, until)
            yield Question(
                *("interruption", "stop", turn.start),
                min(turn.end + LINGERS_SECONDS, until),
            )
    for heard in scene.back_channels:
        yield from _over_answer(scene, "back-channel", heard.start, heard.end)
    yield from _around(scene)
    for answer in scene.assistant:
        # With the one that a scene ends with, nobody has to do any more.
        if answer.end < scene.seconds:
            until = min([answer.end, *(at for at in _sounds(scene) if at >= answer.start)])
            yield Question("nobody", "stop", answer.start, until)


def _around(scene: Scene) -> Iterator[Question]:
    """What is said and heard around the user, in the scenes that are about it."""
    if scene.kind != "noise":
        return
    first = min((turn.start for turn in scene.user), default=scene.seconds)
    turns = [*scene.user, *scene.back_channels]
    for said in scene.said:
        end = said.at + said.end - said.start
        own = any(said.at < turn.end and end > turn.start for turn in turns)
        if said.channel == "user" and not own:
            yield from _over_answer(scene, "other speech", said.at, end)
    for sound in scene.sounds:
        yield from _over_answer(scene, "other sound", sound.at, sound.at + sound.seconds)
    if all(turn.start >= first for turn in scene.assistant):
        yield Question("noise", "answer", 0.0, first)


def _sounds(scene: Scene) -> list[float]:
    """When anything begins that is not the assistant, and not the place."""
    spoken = [one.start for one in (*scene.user, *scene.back_channels)]
    said = [one.at for one in scene.said if one.channel == "user"]
    return [*spoken, *said, *(one.at for one in scene.sounds)]


def _over_answer(scene: Scene, kind: Kind, start: float, end: float) -> Iterator[Question]:
    """Asks whether the answer under way is stopped; nothing where there is none, or by a turn."""
    answer = _over(scene, start)
    if answer is None:
        return
    turns = (turn.start for turn in scene.user if turn.start >= start)
    until = min(end + LINGERS_SECONDS, answer.end, *turns)
    yield Question(kind, "stop", start, until)


def _over(scene: Scene, at: float) -> Stretch | None:
    """The answer during which something begins."""
    return next((one for one in scene.assistant if one.start <= at < one.end), None)
