"""Who decides who speaks: the predictor, a timer of silence, a model that hears ends of turns.

Each makes of a scene a score for either decision, moment by moment; a decision falls where the
score reaches a knob. So all of them are measured at every setting of their knobs, on the same
scenes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from minmo.audio.pcm import Samples
from minmo.audio.resample import LISTENING_RATE_HZ
from minmo.audio.vad import FRAME_SAMPLES, VadThresholds
from minmo.evaluation.duplex_questions import Scene

Figures = NDArray[np.float64]

_FRAME_SECONDS = FRAME_SAMPLES / LISTENING_RATE_HZ
_HANGOVER_SECONDS = VadThresholds().hangover_frames * _FRAME_SECONDS


@dataclass(frozen=True)
class Voice:
    """A stretch of speech as voice activity detection notices it; seconds of the scene.

    Attributes:
        start: its first moment.
        noticed: when it is known.
        over: when its end is known; the end of the scene where it never is.
    """

    start: float
    noticed: float
    over: float

    @property
    def end(self) -> float:
        """Where the speech ends."""
        return self.over - _HANGOVER_SECONDS


class Predicted(Protocol):
    """What the full-duplex predictor says, in order of time."""

    @property
    def heard(self) -> Figures:
        """`[probes]`, seconds of the scene that each answer stands for."""

    @property
    def known(self) -> Figures:
        """`[probes]`, seconds that must have been heard for it."""

    @property
    def answer(self) -> Figures:
        """`[probes]`, probability of assistant turn-taking."""

    @property
    def stop(self) -> Figures:
        """`[probes]`, probability of user turn-taking."""


@dataclass(frozen=True)
class Trial:
    """A scene that is to be decided on.

    Attributes:
        name: of it, unique.
        scene: what happens in it.
        user: `[samples]` at 16 kHz, the user's channel.
        voices: stretches of speech in it, in order.
        predicted: what the predictor says; None where it is not asked.
    """

    name: str
    scene: Scene
    user: Samples
    voices: Sequence[Voice]
    predicted: Predicted | None = None


@dataclass(frozen=True)
class Scores:
    """Scores of a decision, moment by moment.

    Attributes:
        heard: `[moments]`, seconds of the scene that a score is about, rising.
        known: `[moments]`, seconds of the scene at which it is there, rising.
        values: `[moments]`; where one reaches the knob, the decision falls.
    """

    heard: Figures
    known: Figures
    values: Figures

    def first(self, start: float, end: float, knob: Figures) -> Figures:
        """How long after the start of a stretch a decision falls in it.

        Args:
            start: seconds of the scene.
            end: too late.
            knob: `[settings]`.

        Returns:
            `[settings]`, seconds; infinite where none falls.
        """
        low, high = np.searchsorted(self.known, (start, end))
        within = np.maximum.accumulate(self.values[low:high])
        places = np.searchsorted(within, knob)
        delays = np.append(self.known[low:high] - start, np.inf)
        return np.asarray(delays[places], np.float64)

    def on_steps(self, step: float, count: int) -> Figures:
        """The highest score that is about each step `[count]`; 0 where there is none."""
        steps = np.zeros(count)
        # What is about the very end of a step is of that step.
        places = np.ceil(self.heard / step - 1e-6).astype(np.int64) - 1
        there = (places >= 0) & (places < count)
        np.maximum.at(steps, places[there], self.values[there])
        return steps


@dataclass(frozen=True)
class Knob:
    """The settings of a decision.

    Attributes:
        values: `[settings]`, rising: all that are measured.
        unit: of them, for people.
    """

    values: Figures
    unit: str

    def place(self, value: float) -> int:
        """The number of the setting nearest to a value."""
        return int(np.abs(self.values - value).argmin())


@dataclass(frozen=True)
class Setting:
    """Where a system is used.

    Attributes:
        name: for people.
        answer: value of the knob of answering.
        stop: value of the knob of stopping; None for who decides no such thing.
    """

    name: str
    answer: float
    stop: float | None


class Decider(Protocol):
    """Decides who speaks."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def answer_knob(self) -> Knob:
        """Of answering."""

    @property
    def stop_knob(self) -> Knob | None:
        """Of stopping; None for who decides no such thing."""

    @property
    def settings(self) -> Sequence[Setting]:
        """Where it is used."""

    def answering(self, trial: Trial) -> Scores:
        """When it would answer."""

    def stopping(self, trial: Trial) -> Scores | None:
        """When it would stop; None for who decides no such thing."""


class SilenceTimer:
    """Answers after a silence and stops after a stretch of speech, as voice activity has them."""

    name = "silence timer"
    answer_knob = Knob(np.round(np.arange(0.1, 3.0, 0.1), 2), "s of silence")
    stop_knob: Knob | None = Knob(np.round(np.arange(0.1, 2.01, 0.1), 2), "s of speech")
    settings: Sequence[Setting] = tuple(
        Setting(f"{silence:g} s", silence, 0.2) for silence in (0.3, 0.5, 0.8, 1.2)
    )

    def answering(self, trial: Trial) -> Scores:
        """Seconds of silence behind the latest speech."""
        times, values = _frames(trial.scene)
        for voice, until in zip(trial.voices, _untils(trial), strict=True):
            silent = (times >= voice.over) & (times < until)
            values[silent] = times[silent] - voice.end
        return Scores(times, times, values)

    def stopping(self, trial: Trial) -> Scores:
        """Seconds of the speech that is going on."""
        times, values = _frames(trial.scene)
        for voice in trial.voices:
            spoken = (times >= voice.noticed) & (times < voice.over)
            values[spoken] = np.minimum(times[spoken], voice.end) - voice.start
        return Scores(times, times, values)


class FullDuplex:
    """The full-duplex predictor, behind the orchestrator's rule that nobody answers into speech.

    Args:
        settings: its operating points.
        into_speech: without that rule: what the predictor decides alone. Voice activity still
            opens what it is asked in.
    """

    def __init__(self, settings: Sequence[Setting], *, into_speech: bool = False) -> None:
        self.name = "predictor, no voice activity" if into_speech else "predictor"
        self.settings = settings
        self._into_speech = into_speech
        usual = np.arange(1, 100) / 100
        stops = [one.stop for one in settings if one.stop is not None]
        answers = [one.answer for one in settings]
        self.answer_knob = Knob(np.union1d(usual, answers), "probability")
        self.stop_knob: Knob | None = Knob(np.union1d(usual, stops), "probability")

    def answering(self, trial: Trial) -> Scores:
        """Probabilities of assistant turn-taking, and at the end of speech the latest one."""
        said = _predicted(trial)
        if self._into_speech:
            return Scores(said.heard, said.known, said.answer)
        # A decision also falls where voice activity ends, by what was said last.
        ends = np.array([voice.over for voice in trial.voices if voice.over < trial.scene.seconds])
        latest = np.searchsorted(said.known, ends, "right") - 1
        ends, latest = ends[latest >= 0], latest[latest >= 0]
        known = np.concatenate((said.known, ends))
        order = np.argsort(known, kind="stable")
        heard = np.concatenate((said.heard, ends))[order]
        values, known = np.concatenate((said.answer, said.answer[latest]))[order], known[order]
        for voice in trial.voices:
            values = np.where((known >= voice.noticed) & (known < voice.over), 0.0, values)
        return Scores(heard, known, values)

    def stopping(self, trial: Trial) -> Scores:
        """Probabilities of user turn-taking."""
        said = _predicted(trial)
        return Scores(said.heard, said.known, said.stop)


TurnEnd = Callable[[Samples], float]
"""Tells of `[samples]` at 16 kHz of a turn so far how probable it is that the turn is over."""


class EndpointModel:
    """Asks a model at each silence whether the turn is over, as pipelines of voice assistants do.

    It decides nothing about stopping: there, such pipelines go by voice activity.

    Args:
        name: of the model, for people.
        turn_end: the model.
        usual: probability from which on it is believed.
    """

    stop_knob: Knob | None = None
    _SILENCE_SECONDS = 0.2
    _BEFORE_SECONDS = 0.5

    def __init__(self, name: str, turn_end: TurnEnd, usual: float = 0.5) -> None:
        self.name, self._turn_end = name, turn_end
        self.answer_knob = Knob(np.arange(1, 100) / 100, "probability")
        self.settings: Sequence[Setting] = (Setting(f"{usual:g}", usual, None),)

    def answering(self, trial: Trial) -> Scores:
        """What the model says, as long as the silence lasts in which it was asked."""
        times, values = _frames(trial.scene)
        for number, until in enumerate(_untils(trial)):
            voice = trial.voices[number]
            asked = voice.end + self._SILENCE_SECONDS
            silent = (times >= asked) & (times < until)
            if not silent.any():
                continue
            start = max(0.0, self._turn_start(trial, number) - self._BEFORE_SECONDS)
            part = slice(*(round(at * LISTENING_RATE_HZ) for at in (start, asked)))
            values[silent] = self._turn_end(trial.user[part])
        return Scores(times, times, values)

    def stopping(self, trial: Trial) -> None:
        """It decides no such thing."""

    @staticmethod
    def _turn_start(trial: Trial, number: int) -> float:
        """Where the speech begins that belongs together with that of a stretch."""
        voice = trial.voices[number]
        turn = next((one for one in reversed(trial.scene.user) if one.start < voice.over), None)
        if turn is None:
            return voice.start
        return min((one.start for one in trial.voices if one.over > turn.start), default=turn.start)


def _frames(scene: Scene) -> tuple[Figures, Figures]:
    """Ends of the frames of voice activity, and zeros."""
    count = int(scene.seconds / _FRAME_SECONDS + 1e-6)
    times: Figures = np.arange(1, count + 1, dtype=np.float64) * _FRAME_SECONDS
    return times, np.zeros(count)


def _untils(trial: Trial) -> list[float]:
    """When the silence behind each stretch of speech is over, for all that is known."""
    following = [voice.noticed for voice in trial.voices[1:]]
    return [*following, trial.scene.seconds + 1.0][: len(trial.voices)]


def _predicted(trial: Trial) -> Predicted:
    if trial.predicted is None:
        raise ValueError(f"the predictor was not asked about scene {trial.name}")
    return trial.predicted
