"""Who has the floor: the decisions of a conversation, without any I/O.

`TurnTaking` answers the two questions of full duplex (assistant turn-taking and user turn-taking).
`SilenceTurnTaking` answers them from voice activity alone, `DuplexTurnTaking`
(`duplex_turn_taking.py`) from what the full-duplex predictor says. `ClientTurnTaking` leaves them
to the client, who ends a turn with `Floor.commit`.

`Floor` turns voice activity, and what the predictor says, into what the conversation acts on. Its
states::

    QUIET --speech--> USER --answer now--> ASSISTANT --answer played--> QUIET
                       ^                    |      ^
                       |                 speech    | speech was over, for as long as decisions
                       |                    v      | linger, before "stop now" (back-channel)
                       +----stop now---- OVERLAP --+
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

SAMPLE_RATE_HZ = 16_000
"""Positions in the user's audio are samples at this rate."""


def milliseconds(samples: int) -> float:
    """Length of `samples` at 16 kHz, in milliseconds."""
    return samples * 1000 / SAMPLE_RATE_HZ


def samples(ms: float) -> int:
    """Samples at 16 kHz in `ms` milliseconds."""
    return round(ms * SAMPLE_RATE_HZ / 1000)


@dataclass(frozen=True)
class Activity:
    """Voice activity up to a position: what the encoder says after a chunk of audio.

    Attributes:
        end: samples at 16 kHz heard so far.
        speaking: whether somebody speaks at `end`.
        speech_start: start of the latest stretch of speech.
        speech_end: end of the latest stretch of speech so far.
    """

    end: int
    speaking: bool
    speech_start: int
    speech_end: int


@dataclass(frozen=True)
class Probabilities:
    """What the full-duplex predictor says: answer now? stop now? (0 to 1 each).

    Attributes:
        assistant_turn: whether the user has said something that wants an answer now.
        user_turn: whether the assistant should stop and listen.
        heard_until: what it has heard, in samples at 16 kHz.
    """

    assistant_turn: float
    user_turn: float
    heard_until: int


@dataclass(frozen=True)
class Predicted:
    """What is known of the predictor's opinion.

    Attributes:
        latest: what it said last; None before it has said anything.
        age_ms: audio that came since then, or since it was first to be asked.
    """

    latest: Probabilities | None = None
    age_ms: float = 0.0


class TurnTaking(Protocol):
    """The two decisions."""

    def answer_now(self, silence_ms: float, predicted: Predicted) -> bool:
        """Assistant turn-taking: the user has been silent for `silence_ms`; is it our turn?"""

    def may_answer(self, predicted: Predicted) -> bool:
        """Whether it is likely enough to be our turn soon that an answer is worth beginning."""

    def stop_now(self, overlap_ms: float, predicted: Predicted) -> bool:
        """User turn-taking: the user has spoken over us for `overlap_ms`; do we stop?"""

    @property
    def lingers_ms(self) -> float:
        """Silence after speech over an answer in which it may still be decided to stop."""

    @property
    def hears_the_end(self) -> bool:
        """Whether a turn ends when no audio comes any more."""


@dataclass(frozen=True)
class SilenceTurnTaking:
    """Answers after a silence, stops after a stretch of speech.

    Attributes:
        end_of_turn_ms: silence that ends the user's turn.
        barge_in_ms: speech over the answer that stops it; None if none does.
    """

    end_of_turn_ms: float
    barge_in_ms: float | None
    lingers_ms: float = 0.0
    hears_the_end: bool = True

    def answer_now(self, silence_ms: float, predicted: Predicted) -> bool:
        """True once the silence is long enough."""
        return silence_ms >= self.end_of_turn_ms

    def may_answer(self, predicted: Predicted) -> bool:
        """Never."""
        return False

    def stop_now(self, overlap_ms: float, predicted: Predicted) -> bool:
        """True once the user has spoken long enough."""
        return self.barge_in_ms is not None and overlap_ms >= self.barge_in_ms


@dataclass(frozen=True)
class ClientTurnTaking:
    """Leaves both decisions to the client: voice activity ends no turn and stops no answer."""

    lingers_ms: float = 0.0
    hears_the_end: bool = False

    def answer_now(self, silence_ms: float, predicted: Predicted) -> bool:
        """Never."""
        return False

    def may_answer(self, predicted: Predicted) -> bool:
        """Never."""
        return False

    def stop_now(self, overlap_ms: float, predicted: Predicted) -> bool:
        """Never."""
        return False


class FloorState(Enum):
    """Who has the floor."""

    QUIET = auto()
    USER = auto()
    ASSISTANT = auto()
    OVERLAP = auto()


class Happened(Enum):
    """What `Floor` found out."""

    SPEECH_STARTED = auto()
    """The user began to speak (again)."""
    SPEECH_STOPPED = auto()
    """The user fell silent."""
    PAUSE = auto()
    """The silence is long enough to look at what was said so far."""
    MAY_END = auto()
    """The user's turn may have ended: an answer is worth beginning that nobody hears yet."""
    TURN_ENDED = auto()
    """The user's turn has ended: answer now."""
    TURN_TOO_LONG = auto()
    """The user's turn reached the limit: answer now, although they go on."""
    BARGE_IN = auto()
    """The user took the floor from the assistant: stop now."""
    BACK_CHANNEL = auto()
    """The user spoke over the assistant, but not to take the floor."""


@dataclass(frozen=True)
class FloorEvent:
    """What happened, and where in the user's audio (samples at 16 kHz).

    `start` and `end` enclose the user's turn so far for PAUSE, MAY_END, TURN_ENDED and
    TURN_TOO_LONG, the latest stretch of speech for the others.
    """

    what: Happened
    start: int
    end: int


class Floor:
    """Follows voice activity and the assistant's speech; says what it means.

    Args:
        turn_taking: the two decisions.
        pause_ms: silence after which PAUSE is reported, once a stretch of speech.
        max_turn_ms: longest turn of the user.
    """

    def __init__(self, turn_taking: TurnTaking, *, pause_ms: float, max_turn_ms: float) -> None:
        self._turn_taking = turn_taking
        self._pause_ms = pause_ms
        self._max_turn_ms = max_turn_ms
        self._state = FloorState.QUIET
        self._speaking = False
        self._pause_reported = True
        self._turn_start = 0
        self._overlap_start = 0
        self._last = Activity(0, False, 0, 0)
        self._input_start = 0
        self._input_speech: int | None = None
        self._latest: Probabilities | None = None
        self._asks_since = 0

    @property
    def state(self) -> FloorState:
        """Who has the floor now."""
        return self._state

    @property
    def turn_start(self) -> int:
        """Where the user's turn began, in samples at 16 kHz."""
        return self._turn_start

    @property
    def last(self) -> Activity:
        """The latest voice activity."""
        return self._last

    @property
    def input_start(self) -> int:
        """Where the audio begins that belongs to no turn yet: where the last turn ended."""
        return self._input_start

    def decide_by(self, turn_taking: TurnTaking, *, pause_ms: float) -> None:
        """Others decide from here on."""
        self._turn_taking = turn_taking
        self._pause_ms = pause_ms

    def commit(self, end: int) -> FloorEvent:
        """The client ends the user's turn at `end`; an answer that is under way goes on.

        Returns:
            TURN_ENDED, from the first speech since the last turn, or from all that came since
            where there was none.
        """
        start, stop = self._input_start, end
        if self._input_speech is not None:
            start = self._input_speech
            if not self._speaking:
                stop = min(end, max(start, self._last.speech_end))
        self._end_input(end)
        return FloorEvent(Happened.TURN_ENDED, min(start, stop), stop)

    def clear(self, end: int) -> None:
        """Forgets the user's audio up to `end`."""
        self._end_input(end)

    def assistant_starts(self) -> None:
        """The assistant takes the floor: it thinks or speaks.

        A user who speaks at that moment keeps the start of the turn, for a barge-in.
        """
        turn_start, overlaps = self._turn_start, self._speaking
        had_floor = self._state is FloorState.USER
        self._state = FloorState.OVERLAP if overlaps else FloorState.ASSISTANT
        self._turn_start = self._overlap_start = self._last.end
        self._ask_anew()
        if had_floor and overlaps:
            self._turn_start = turn_start

    def assistant_ends(self) -> None:
        """The assistant gives the floor back. A user who speaks over it goes on with a turn."""
        if self._state is FloorState.OVERLAP:
            self._state = FloorState.USER
        elif self._state is FloorState.ASSISTANT:
            self._state = FloorState.QUIET

    def hear(self, activity: Activity) -> list[FloorEvent]:
        """What voice activity means.

        Activity that is not newer than the last one is ignored: it comes again when an encoder
        is replaced.
        """
        if activity.end <= self._last.end:
            return []
        self._last = activity
        events: list[FloorEvent] = []
        if activity.speaking and not self._speaking:
            events += self._speech_starts(activity)
        elif self._speaking and not activity.speaking:
            self._speaking = False
            events.append(self._event(Happened.SPEECH_STOPPED))
        return events + self._decide()

    def predict(self, predicted: Probabilities) -> list[FloorEvent]:
        """What it means that the predictor has said something about the audio that is heard now.

        What is older than the last, and what nobody has asked, is ignored.
        """
        asked = self._state in (FloorState.USER, FloorState.OVERLAP)
        if not asked or (self._latest and predicted.heard_until <= self._latest.heard_until):
            return []
        self._latest = predicted
        events = self._decide()
        # What is about to be answered needs no answer that nobody hears yet.
        waits = self._state is FloorState.USER and not self._speaking
        if waits and self._turn_taking.may_answer(self._predicted()):
            events.append(self._event(Happened.MAY_END))
        return events

    def silence(self) -> list[FloorEvent]:
        """No audio comes any more (the stream ended, the microphone is off): silence, at once."""
        events: list[FloorEvent] = []
        if self._speaking:
            self._speaking = False
            events.append(self._event(Happened.SPEECH_STOPPED))
        if self._state is FloorState.OVERLAP:
            self._state = FloorState.ASSISTANT
            events.append(self._event(Happened.BACK_CHANNEL))
        if self._state is FloorState.USER:
            if not self._pause_reported:
                self._pause_reported = True
                events.append(self._event(Happened.PAUSE))
            if self._turn_taking.hears_the_end:
                events.append(self._event(Happened.TURN_ENDED))
                self._give_to_assistant()
        return events

    def _speech_starts(self, activity: Activity) -> list[FloorEvent]:
        self._speaking = True
        self._pause_reported = False
        if self._input_speech is None:
            self._input_speech = max(activity.speech_start, self._input_start)
        if self._state is FloorState.QUIET:
            self._state = FloorState.USER
            self._turn_start = activity.speech_start
            self._ask_anew()
        elif self._state is FloorState.ASSISTANT:
            self._state = FloorState.OVERLAP
            self._turn_start = self._overlap_start = activity.speech_start
            self._ask_anew()
        return [self._event(Happened.SPEECH_STARTED)]

    def _decide(self) -> list[FloorEvent]:
        """What follows from what was heard and predicted so far."""
        if self._state is FloorState.OVERLAP:
            return self._user_speaks_over()
        if self._state is FloorState.USER:
            return self._user_has_floor()
        return []

    def _user_speaks_over(self) -> list[FloorEvent]:
        activity = self._last
        overlap_ms = milliseconds(activity.speech_end - self._overlap_start)
        over = not self._speaking
        # Where decisions do not linger, what is over has stopped nothing.
        lingers = milliseconds(activity.end - activity.speech_end) < self._turn_taking.lingers_ms
        if (not over or lingers) and self._turn_taking.stop_now(overlap_ms, self._predicted()):
            self._state = FloorState.USER
            return [self._event(Happened.BARGE_IN)]
        if over and not lingers:
            self._state = FloorState.ASSISTANT
            return [self._event(Happened.BACK_CHANNEL)]
        return []

    def _user_has_floor(self) -> list[FloorEvent]:
        activity = self._last
        events: list[FloorEvent] = []
        silence_ms = 0.0
        if not self._speaking:
            silence_ms = milliseconds(activity.end - activity.speech_end)
            if silence_ms >= self._pause_ms and not self._pause_reported:
                self._pause_reported = True
                events.append(self._event(Happened.PAUSE))
        if not self._speaking and self._turn_taking.answer_now(silence_ms, self._predicted()):
            events.append(self._event(Happened.TURN_ENDED))
            self._give_to_assistant()
        elif milliseconds(activity.end - self._turn_start) >= self._max_turn_ms:
            events.append(self._event(Happened.TURN_TOO_LONG))
            self._give_to_assistant()
        return events

    def _give_to_assistant(self) -> None:
        self._state = FloorState.OVERLAP if self._speaking else FloorState.ASSISTANT
        self._turn_start = self._overlap_start = self._last.end
        self._input_start = self._last.end
        self._input_speech = self._last.end if self._speaking else None
        self._ask_anew()

    def _ask_anew(self) -> None:
        """What the predictor has said was about something else."""
        self._latest, self._asks_since = None, self._last.end

    def _predicted(self) -> Predicted:
        since = self._asks_since
        if self._latest is not None:
            since = max(since, self._latest.heard_until)
        return Predicted(self._latest, max(0.0, milliseconds(self._last.end - since)))

    def _end_input(self, end: int) -> None:
        self._input_start = end
        self._input_speech = end if self._speaking else None
        self._turn_start = end
        if self._state is FloorState.USER and not self._speaking:
            self._state = FloorState.QUIET

    def _event(self, what: Happened) -> FloorEvent:
        whole_turn = what in (
            *(Happened.PAUSE, Happened.MAY_END),
            *(Happened.TURN_ENDED, Happened.TURN_TOO_LONG),
        )
        start = self._turn_start if whole_turn else self._last.speech_start
        return FloorEvent(what, start, max(start, self._last.speech_end))
