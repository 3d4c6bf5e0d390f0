"""Draws scenes: who says what when, by seed.

What a pause sounds like must not tell whose turn it is. The silence in which a turn ends and the
silence in which somebody looks for a word are drawn from the same range, so what was said before
is all that tells them apart, and how.

| scene | shows |
| --- | --- |
| turn | an utterance, then an answer, now and then at once |
| pause | a silence between two words of a sentence |
| filler | the same with "um" in it |
| go-on | a whole sentence, a silence, and another one of the same turn |
| back-channel | "mm-hm" over the assistant, which goes on |
| interruption | the user takes the floor from the assistant |
| noise | coughs, music, knocking and other people's speech, over the assistant or in silence |

Every scene ends with a turn of the user and the beginning of its answer.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, get_args

from minmo.model.duplex_labels import REACTION_DEVIATION_S, REACTION_MEAN_S
from minmo.training.data.duplex_asides import TEXTS, AsideKind
from minmo.training.data.duplex_clips import Cast, Voiced
from minmo.training.data.duplex_scenes import (
    MadeSound,
    Pause,
    Place,
    Said,
    Scene,
    SceneKind,
    Sounding,
    Span,
    Spoken,
)
from minmo.training.data.errors import DataError

SHARES: Final[Mapping[SceneKind, float]] = {
    "turn": 0.18,
    "pause": 0.26,
    "filler": 0.08,
    "go-on": 0.08,
    "back-channel": 0.16,
    "interruption": 0.16,
    "noise": 0.08,
}
"""How many of all scenes are of each kind."""
SILENCE_SECONDS: Final = (0.3, 2.0)
"""Of a pause within a turn, and from the end of a turn to its answer."""
_AT_ONCE_SHARE, _AT_ONCE_SECONDS = 0.2, (0.05, 0.3)
_FILLER_SECONDS = (0.1, 0.6)
_BEFORE_SECONDS = (0.3, 1.2)
_ANSWER_TAIL_SECONDS = 0.6
# An answer that somebody speaks over is no shorter, where the voice has such a clip.
_LONG_ANSWER_SECONDS, _LONG_ANSWER_TRIES = 4.0, 12
# Where in an answer something is said over it.
_OVER_SHARE = (0.15, 0.8)
# From the moment that an interruption is understood to silence.
_STOPPING_SECONDS = (0.1, 0.5)
_USER_LEVEL, _ASSISTANT_LEVEL = (-32.0, -18.0), -20.0
_BACK_CHANNEL_SOFTER = (0.0, 8.0)
_BACKGROUND_SOFTER = (10.0, 24.0)
_SOUND_LEVEL, _SOUND_SECONDS = (-45.0, -22.0), (0.15, 1.5)
_SOUNDS: tuple[MadeSound, ...] = get_args(MadeSound)
_SOUND_SHARE = 0.12
_NOISE_SHARE, _NOISE_BELOW = 0.7, (12.0, 45.0)
_ROOM_SHARE, _RT60 = 0.4, (0.1, 0.7)
_ECHO_SHARE, _ECHO_SOFTER, _ECHO_DELAY = 0.6, (12.0, 45.0), (0.02, 0.3)
_SEEDS = 2**31


@dataclass
class _Heard:
    """A turn of the user as it is laid out."""

    start: float
    end: float
    text: str
    said: list[Said]
    pauses: list[Pause] = field(default_factory=list)


class Planner:
    """Draws the scenes of a set.

    Args:
        cast: who can say what.
        split: the set.
        root: folder of the scenes, from which clips' shards are named.
        seed: of everything that is drawn: scene `number` depends on it and on the clips alone.

    Raises:
        DataError: clips are missing that scenes cannot do without.
    """

    def __init__(self, cast: Cast, split: str, root: Path, seed: int) -> None:
        self._cast, self._split, self._root, self._seed = cast, split, root, seed
        self._paused = cast.with_pauses()
        _check(cast, self._paused, split)
        self._answers = cast.answers()
        self._answering = sorted(self._answers)
        self._users: dict[SceneKind, list[str]] = {
            kind: self._speakers_for(kind) for kind in SHARES
        }

    def scene(self, number: int) -> Scene:
        """The scene of a number, the same every time."""
        drawn = random.Random(f"{self._seed} scene {self._split} {number}")
        (kind,) = drawn.choices(list(SHARES), list(SHARES.values()))
        return _Drawing(self, kind, drawn).scene()

    def _speakers_for(self, kind: SceneKind) -> list[str]:
        """Users who have the clips that a scene is made of."""
        asides: Mapping[SceneKind, AsideKind] = {
            "filler": "filler",
            "back-channel": "back-channel",
            "interruption": "interruption",
        }
        speakers = set(self._paused if kind in ("pause", "filler") else self._cast.turns)
        if kind in asides:
            speakers &= set(self._cast.asides[asides[kind]])
        return sorted(speakers)


class _Drawing:
    """One scene while it is drawn."""

    def __init__(self, planner: Planner, kind: SceneKind, drawn: random.Random) -> None:
        self._cast, self._paused = planner._cast, planner._paused
        self._answers = planner._answers
        self._root, self._kind, self._drawn = planner._root, kind, drawn
        self._user = drawn.choice(planner._users[kind])
        self._assistant = drawn.choice([one for one in planner._answering if one != self._user])
        self._level = drawn.uniform(*_USER_LEVEL)
        self._said: list[Said] = []
        self._sounds: list[Sounding] = []

    def scene(self) -> Scene:
        """Draws it."""
        kind, drawn = self._kind, self._drawn
        over = kind in ("back-channel", "interruption") or (
            kind == "noise" and drawn.random() < 0.6
        )
        answered: list[Spoken] = []
        back_channels: list[Span] = []
        asked, at = "", drawn.uniform(*_BEFORE_SECONDS)
        if over:
            asked = drawn.choice(self._cast.turns[self._user]).clip.text
            first = self._spoken(self._long_answer())
            at = first.end
            if kind == "back-channel":
                back_channels = self._back_channels(first)
            if kind == "interruption":
                share = drawn.uniform(*_OVER_SHARE)
                turn = self._interruption(first.start + share * first.seconds)
                first = self._stopped(first, turn)
            else:
                turn = self._turn(at + drawn.uniform(*SILENCE_SECONDS))
            if kind == "noise":
                self._disturb(first.start + 0.3, first.end)
            answered.append(first)
        else:
            if kind == "noise":
                until = at + drawn.uniform(1.0, 2.5)
                self._disturb(at, until)
                at = until + drawn.uniform(0.2, 1.0)
            turn = self._turn(at)
        floor = max([turn.end, *(one.end for one in answered)])
        reply = self._reply(floor + self._before_answer())
        for pause in (*turn.pauses, Pause(turn.end, reply.start, complete=True)):
            if drawn.random() < _SOUND_SHARE:
                self._disturb(pause.start, pause.end)
        self._said += turn.said
        return Scene(
            kind=kind,
            speaker=self._user,
            seconds=reply.end,
            asked=asked,
            user=(Spoken(turn.start, turn.end, turn.text, round(turn.end - turn.start, 3)),),
            assistant=(*answered, reply),
            back_channels=tuple(back_channels),
            pauses=tuple(turn.pauses),
            said=tuple(sorted(self._said, key=lambda one: one.at)),
            sounds=tuple(self._sounds),
            place=self._place(),
        )

    # --- the user

    def _turn(self, at: float) -> _Heard:
        """A turn whose first word is heard about then."""
        drawn, kind = self._drawn, self._kind
        if kind in ("pause", "filler"):
            return self._with_pause(drawn.choice(self._paused[self._user]), at)
        turn = self._whole(drawn.choice(self._cast.turns[self._user]), at)
        if kind == "go-on":
            self._append(turn, self._silence(), complete=True)
        return turn

    def _interruption(self, at: float) -> _Heard:
        """A turn over the assistant: an objection, a question, or one and then the other."""
        drawn = self._drawn
        if drawn.random() < 0.4:
            return self._whole(drawn.choice(self._cast.turns[self._user]), at)
        turn = self._whole(drawn.choice(self._cast.asides["interruption"][self._user]), at)
        if drawn.random() < 0.6:
            self._append(turn, drawn.uniform(0.1, 0.6), complete=True)
        return turn

    def _whole(self, one: Voiced, at: float) -> _Heard:
        start, end = one.speech()
        said = self._heard(one, at, 0.0, one.clip.seconds)
        return _Heard(_ms(at + start), _ms(at + end), one.clip.text, [said])

    def _append(self, turn: _Heard, silence: float, *, complete: bool) -> None:
        """Goes on with another utterance after a silence."""
        one = self._drawn.choice(self._cast.turns[self._user])
        start, _ = one.speech()
        more = self._whole(one, max(0.0, turn.end + silence - start))
        turn.pauses.append(Pause(turn.end, more.start, complete))
        turn.end, turn.text = more.end, f"{turn.text} {more.text}"
        turn.said += more.said

    def _with_pause(self, one: Voiced, at: float) -> _Heard:
        """An utterance with a silence between two of its words, in which "um" may be said."""
        word = self._drawn.choice(one.borders())
        before, behind = one.spans[word][1], one.spans[word + 1][0]
        # Sounds run into each other: the cut is in the middle of what is between the words.
        cut = (before + behind) / 2
        said = [self._heard(one, at, 0.0, cut)]
        rest = at + before
        if self._kind == "filler":
            filler = self._drawn.choice(self._cast.asides["filler"][self._user])
            start, end = filler.speech()
            first = rest + self._drawn.uniform(*_FILLER_SECONDS)
            said.append(self._heard(filler, max(0.0, first - start), 0.0, filler.clip.seconds))
            silence = Pause(_ms(rest), _ms(first), complete=False)
            pauses, rest = [silence], first + end - start
        else:
            pauses = []
        goes_on = rest + self._silence()
        pauses.append(Pause(_ms(rest), _ms(goes_on), complete=False))
        said.append(self._heard(one, goes_on - (behind - cut), cut, one.clip.seconds))
        end = goes_on + one.spans[-1][1] - behind
        return _Heard(_ms(at + one.spans[0][0]), _ms(end), one.clip.text, said, pauses)

    def _heard(self, one: Voiced, at: float, start: float, end: float) -> Said:
        return self._stretch(one, at, start, end, self._level)

    def _back_channels(self, answer: Spoken) -> list[Span]:
        """One or two back-channels over an answer."""
        drawn, found = self._drawn, list[Span]()
        count = 1 + (drawn.random() < 0.4)
        for number in range(count):
            one = drawn.choice(self._cast.asides["back-channel"][self._user])
            start, end = one.speech()
            low = (number + drawn.uniform(0.1, 0.6)) / count
            at = answer.start + low * max(0.0, answer.seconds - end)
            level = self._level - drawn.uniform(*_BACK_CHANNEL_SOFTER)
            self._said.append(self._stretch(one, at, 0.0, one.clip.seconds, level))
            found.append(Span(_ms(at + start), _ms(at + end)))
        return found

    # --- the assistant

    def _long_answer(self) -> Voiced:
        clips = self._answers[self._assistant]
        tried = [self._drawn.choice(clips) for _ in range(_LONG_ANSWER_TRIES)]
        long = (one for one in tried if one.clip.seconds >= _LONG_ANSWER_SECONDS)
        return next(long, max(tried, key=lambda one: one.clip.seconds))

    def _spoken(self, one: Voiced) -> Spoken:
        """An answer from the start of the scene on."""
        said = self._stretch(one, 0.0, 0.0, one.clip.seconds, _ASSISTANT_LEVEL)
        self._said.append(replace(said, channel="assistant"))
        return Spoken(0.0, _ms(one.clip.seconds), one.clip.text, _ms(one.clip.seconds))

    def _stopped(self, answer: Spoken, turn: _Heard) -> Spoken:
        """The answer, cut off once the interruption is understood."""
        reaction = self._drawn.gauss(REACTION_MEAN_S, REACTION_DEVIATION_S)
        stop = turn.start + max(0.1, reaction) + self._drawn.uniform(*_STOPPING_SECONDS)
        end = _ms(min(answer.end, stop))
        (said,) = (one for one in self._said if one.channel == "assistant")
        self._said[self._said.index(said)] = replace(said, end=end)
        return replace(answer, end=end)

    def _reply(self, at: float) -> Spoken:
        """The beginning of an answer, with which the scene ends."""
        one = self._drawn.choice(self._answers[self._assistant])
        heard = min(_ANSWER_TAIL_SECONDS, one.clip.seconds)
        said = self._stretch(one, at, 0.0, heard, _ASSISTANT_LEVEL)
        self._said.append(replace(said, channel="assistant"))
        return Spoken(_ms(at), _ms(at + heard), one.clip.text, _ms(one.clip.seconds))

    def _before_answer(self) -> float:
        at_once = self._drawn.random() < _AT_ONCE_SHARE
        return self._drawn.uniform(*_AT_ONCE_SECONDS) if at_once else self._silence()

    # --- what is around

    def _disturb(self, start: float, end: float) -> None:
        """Somebody in the background, or a sound that is no speech, between two times."""
        drawn = self._drawn
        at = drawn.uniform(start, max(start, end - 0.2))
        others = [one for one in self._cast.speakers if one not in (self._user, self._assistant)]
        if others and drawn.random() < 0.4:
            one = drawn.choice(self._cast.turns[drawn.choice(others)])
            level = self._level - drawn.uniform(*_BACKGROUND_SOFTER)
            until = min(one.clip.seconds, max(0.2, end - at))
            self._said.append(self._stretch(one, at, 0.0, until, level))
            return
        what = drawn.choice(_SOUNDS)
        seconds = min(drawn.uniform(*_SOUND_SECONDS), max(0.15, end - at))
        level = drawn.uniform(*_SOUND_LEVEL)
        self._sounds.append(
            Sounding(what, _ms(at), _ms(seconds), round(level, 1), drawn.randrange(_SEEDS))
        )

    def _place(self) -> Place:
        drawn = self._drawn
        noisy, room, echo = (
            drawn.random() < share for share in (_NOISE_SHARE, _ROOM_SHARE, _ECHO_SHARE)
        )
        return Place(
            noise=round(self._level - drawn.uniform(*_NOISE_BELOW), 1) if noisy else None,
            colour=drawn.choice(("white", "pink", "brown")),
            rt60=round(drawn.uniform(*_RT60), 2) if room else None,
            echo=round(drawn.uniform(*_ECHO_SOFTER), 1) if echo else None,
            echo_delay=_ms(drawn.uniform(*_ECHO_DELAY)),
            seed=drawn.randrange(_SEEDS),
        )

    def _silence(self) -> float:
        return self._drawn.uniform(*SILENCE_SECONDS)

    def _stretch(self, one: Voiced, at: float, start: float, end: float, level: float) -> Said:
        shard = Path(os.path.relpath(one.shard, self._root)).as_posix()
        times = (_ms(start), _ms(end), _ms(at))
        return Said("user", shard, one.clip.id, *times, round(level, 1))


def _ms(seconds: float) -> float:
    return round(seconds, 3)


def _check(cast: Cast, paused: Mapping[str, Sequence[Voiced]], split: str) -> None:
    """Refuses a set of which the scenes cannot be made.

    Raises:
        DataError: says what is missing, and what makes it.
    """
    if len(cast.answers()) < 2:
        raise DataError(
            f"{split} has whole sentences of {len(cast.answers())} speakers: scenes take two at "
            "least, with texts that begin with a capital letter and end with a full stop"
        )
    if not paused:
        raise DataError(
            f"no utterance of {split} says where its words are, as those of `minmo data speech` "
            "do: pauses are cut between two words"
        )
    for kind in TEXTS:
        speakers = set(cast.asides.get(kind, {})) & set(paused if kind == "filler" else cast.turns)
        if not speakers:
            raise DataError(
                f"no speaker of {split} has both whole utterances and a {kind}: make them with "
                "`minmo data asides` and `minmo data speech`, by the voices of the other clips"
            )
