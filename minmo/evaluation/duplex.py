"""`minmo eval duplex`: is it decided rightly and soon who speaks, and by whom best?"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from minmo.evaluation import paper
from minmo.evaluation.asr import Progress
from minmo.evaluation.duplex_deciders import Decider, Setting, Trial
from minmo.evaluation.duplex_outcomes import OFFSETS, STOP_KINDS, Measured, Outcomes, dominated
from minmo.evaluation.duplex_questions import Kind, Wanted
from minmo.evaluation.errors import EvaluationError
from minmo.evaluation.report import Table, percent, plain
from minmo.evaluation.statistics import RESAMPLES, Estimate, Rows, bootstrap, rate

_Interval: TypeAlias = Callable[[int, Callable[[Rows], float]], Estimate]
_UNKNOWN = Estimate(float("nan"), float("nan"), float("nan"))
_SLOW = 90
_CHANGES_HEADER = (
    *("system", "setting"),
    *(f"answer, K = {k}" for k in OFFSETS),
    *(f"stop, K = {k}" for k in OFFSETS),
    "back-channels heard rightly %",
)
_ANSWERS_HEADER = (
    *("system", "setting", "pauses taken %", "turns cut %", "ends answered %"),
    *("after s (median)", "p90 s", "after an interruption s", "answers to noise %"),
)
_STOPS_HEADER = (
    *("system", "setting", "interruptions that stop %", "after s (median)", "p90 s"),
    *("stops: back-channel %", "other speech %", "other sound %", "nobody %"),
)
_BETTER_HEADER = ("than", "answering %", "stopping %")


@dataclass(frozen=True)
class ChangesRow:
    """How well a system finds the moments at which the floor changes (paper, Table 22).

    Attributes:
        system: its name.
        setting: of its knobs.
        answer: F1 of assistant turn-taking, by K.
        stop: F1 of user turn-taking, by K; empty for who decides no such thing.
        back_channels: share of back-channels that stop nothing.
    """

    system: str
    setting: str
    answer: Mapping[int, Estimate]
    stop: Mapping[int, Estimate]
    back_channels: Estimate


@dataclass(frozen=True)
class AnswersRow:
    """When a system answers.

    Attributes:
        system: its name.
        setting: of its knobs.
        pauses: share of pauses within a turn that it takes.
        cut: share of turns that it answers before their last word is over.
        ends: share of ends of turns that it answers before anybody else speaks.
        latency_s: median from the end of a turn on, where it answers.
        slow_latency_s: the same, of the slowest tenth the quickest.
        interruption_latency_s: median from the end of a turn that was an interruption.
        noise: share of scenes in which it answers before the user has spoken.
    """

    system: str
    setting: str
    pauses: Estimate
    cut: Estimate
    ends: Estimate
    latency_s: Estimate
    slow_latency_s: Estimate
    interruption_latency_s: Estimate
    noise: Estimate


@dataclass(frozen=True)
class StopsRow:
    """When a system stops.

    Attributes:
        system: its name.
        setting: of its knobs.
        interruptions: share of interruptions that stop it.
        latency_s: median from the start of an interruption on, where it stops.
        slow_latency_s: the same, of the slowest tenth the quickest.
        back_channels: share of back-channels that stop it.
        speech: share of other people's speech that does.
        sounds: share of sounds that does.
        nobody: share of answers that it stops before anybody is heard.
    """

    system: str
    setting: str
    interruptions: Estimate
    latency_s: Estimate
    slow_latency_s: Estimate
    back_channels: Estimate
    speech: Estimate
    sounds: Estimate
    nobody: Estimate


@dataclass(frozen=True)
class Curve:
    """Both errors of a decision at every setting of a knob.

    Attributes:
        system: its name.
        wanted: the decision.
        unit: of the knob.
        knob: its settings.
        taken: share of pauses, or of what is no interruption, in which the floor is taken.
        waited: mean seconds to the answer, or to the stop; where none comes, all that there was.
        marked: where the system is used: names of settings and their places in `knob`.
    """

    system: str
    wanted: Wanted
    unit: str
    knob: Sequence[float]
    taken: Sequence[float]
    waited: Sequence[float]
    marked: Mapping[str, int]


@dataclass(frozen=True)
class BetterRow:
    """How much of another system's curve ours is better than, in both errors at once.

    Attributes:
        than: the other system.
        answer: share of its settings for answering to which one of ours is better.
        stop: the same for stopping; NaN for who decides no such thing.
    """

    than: str
    answer: Estimate
    stop: Estimate


@dataclass(frozen=True)
class DuplexReport:
    """What `minmo eval duplex` found.

    Attributes:
        scenes: how many were heard.
        step_seconds: of the predictor.
        changes: the paper's table.
        answers: when each system answers.
        stops: when each stops.
        curves: of every knob.
        better: ours beside the others; empty without a predictor.
    """

    scenes: int
    step_seconds: float
    changes: Sequence[ChangesRow]
    answers: Sequence[AnswersRow]
    stops: Sequence[StopsRow]
    curves: Sequence[Curve]
    better: Sequence[BetterRow]

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)

    def tables(self) -> list[Table]:
        """For people."""
        made = [self._changes(), self._answers(), self._stops()]
        return [*made, self._better()] if self.better else made

    def _changes(self) -> Table:
        rows = [
            (
                *(row.system, row.setting),
                *(plain(row.answer[k], 3) for k in OFFSETS),
                *(plain(row.stop.get(k, _UNKNOWN), 3) for k in OFFSETS),
                percent(row.back_channels),
            )
            for row in self.changes
        ]
        steps = ", ".join(f"{k} = {k * self.step_seconds:.2f} s" for k in OFFSETS)
        note = f"F1 of changes in {self.scenes} scenes, within K steps: {steps}"
        title = "Turn-taking of assistant (answer) and user (stop)"
        return Table(title, _CHANGES_HEADER, rows, (note, paper.DUPLEX))

    def _answers(self) -> Table:
        rows = [
            (
                *(row.system, row.setting),
                *(percent(row.pauses), percent(row.cut), percent(row.ends)),
                *(plain(row.latency_s), plain(row.slow_latency_s)),
                *(plain(row.interruption_latency_s), percent(row.noise)),
            )
            for row in self.answers
        ]
        note = "Seconds from the last word to the decision, without computation"
        return Table("Answering", _ANSWERS_HEADER, rows, (note, paper.FULL_DUPLEX_BENCH))

    def _stops(self) -> Table:
        rows = [
            (
                *(row.system, row.setting, percent(row.interruptions)),
                *(plain(row.latency_s), plain(row.slow_latency_s)),
                *(percent(row.back_channels), percent(row.speech), percent(row.sounds)),
                percent(row.nobody),
            )
            for row in self.stops
        ]
        note = "Seconds from the first word to the decision, without computation"
        return Table("Stopping", _STOPS_HEADER, rows, (note,))

    def _better(self) -> Table:
        rows = [(row.than, percent(row.answer), percent(row.stop)) for row in self.better]
        note = (
            "Share of the other system's settings to which the predictor has one that takes the "
            "floor wrongly no more often and rightly no later, and is better in one"
        )
        title = "The predictor better in both errors at once"
        return Table(title, _BETTER_HEADER, rows, (note,))


def measure(
    trials: Iterable[Trial],
    deciders: Sequence[Decider],
    *,
    step_seconds: float,
    total: int,
    ours: str | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    progress: Progress = lambda what, done, total: None,
) -> DuplexReport:
    """Has each system decide each scene.

    Args:
        trials: the scenes, heard.
        deciders: the systems.
        step_seconds: of the predictor.
        total: scenes that are to come.
        ours: name of the system that is held against the others; None for none.
        seed: of the intervals.
        resamples: sets of scenes that are drawn for them.
        progress: hears of every scene.

    Raises:
        EvaluationError: there are no scenes.
    """
    found = [Measured(decider, step_seconds) for decider in deciders]
    count = 0
    for count, trial in enumerate(trials, 1):
        for one in found:
            one.ask(trial)
        progress("scenes", count, total)
    if not count:
        raise EvaluationError(
            "there are no scenes: give a folder that `minmo data duplex` has made, and a set of it"
        )
    interval = partial(bootstrap, seed=seed, resamples=resamples)
    described = [_Described(one, interval) for one in found]
    rows = [(one, number) for one in described for number in range(len(one.settings))]
    return DuplexReport(
        scenes=count,
        step_seconds=step_seconds,
        changes=[one.changes(number) for one, number in rows],
        answers=[one.answers(number) for one, number in rows],
        stops=[one.stops(number) for one, number in rows if one.measured.decides("stop")],
        curves=[curve for one in found for curve in _curves(one)],
        better=_better(found, ours, interval),
    )


def write_curves(report: DuplexReport, path: Path) -> None:
    """Writes every setting of every knob as CSV.

    Raises:
        OSError: the file cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.part")
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        header = ("system", "decision", "knob", "unit", "taken", "waited_s", "setting")
        writer.writerow(header)
        for curve in report.curves:
            names = {place: name for name, place in curve.marked.items()}
            points = zip(curve.knob, curve.taken, curve.waited, strict=True)
            for place, (knob, taken, waited) in enumerate(points):
                figures = (f"{knob:.6g}", curve.unit, f"{taken:.6g}", f"{waited:.6g}")
                name = names.get(place, "")
                writer.writerow((curve.system, curve.wanted, *figures, name))
    unfinished.replace(path)


class _Described:
    """What a system's decisions came to, at the settings where it is used."""

    def __init__(self, measured: Measured, interval: _Interval) -> None:
        self.measured, self._interval = measured, interval
        self.settings: Sequence[Setting] = measured.decider.settings

    def changes(self, number: int) -> ChangesRow:
        def f1(wanted: Wanted) -> dict[int, Estimate]:
            if not self.measured.decides(wanted):
                return {}
            return {
                within: self._over_scenes(self.measured.f1(wanted, number, place))
                for place, within in enumerate(OFFSETS)
            }

        stopped = self._share(number, "back-channel")
        rightly = Estimate(1 - stopped.value, 1 - stopped.high, 1 - stopped.low)
        return ChangesRow(*self._names(number), f1("answer"), f1("stop"), rightly)

    def answers(self, number: int) -> AnswersRow:
        system, setting = self._names(number)
        return AnswersRow(
            system,
            setting,
            pauses=self._share(number, "pause"),
            cut=self._share(number, "within"),
            ends=self._share(number, "end"),
            latency_s=self._delay(number, "end", 50),
            slow_latency_s=self._delay(number, "end", _SLOW),
            interruption_latency_s=self._delay(number, "end of interruption", 50),
            noise=self._share(number, "noise"),
        )

    def stops(self, number: int) -> StopsRow:
        system, setting = self._names(number)
        return StopsRow(
            system,
            setting,
            interruptions=self._share(number, "interruption"),
            latency_s=self._delay(number, "interruption", 50),
            slow_latency_s=self._delay(number, "interruption", _SLOW),
            back_channels=self._share(number, "back-channel"),
            speech=self._share(number, "other speech"),
            sounds=self._share(number, "other sound"),
            nobody=self._share(number, "nobody"),
        )

    def _names(self, number: int) -> tuple[str, str]:
        return self.measured.decider.name, self.settings[number].name

    def _at(self, number: int, kind: Kind) -> tuple[Outcomes, int] | None:
        """The questions of a kind, and the place of a setting; None where there is neither."""
        wanted: Wanted = "stop" if kind in STOP_KINDS else "answer"
        setting = self.settings[number]
        value = setting.answer if wanted == "answer" else setting.stop
        if value is None:
            return None
        outcomes = self.measured.of(kind)
        return (outcomes, self.measured.knob(wanted).place(value)) if len(outcomes.scenes) else None

    def _share(self, number: int, kind: Kind) -> Estimate:
        if (found := self._at(number, kind)) is None:
            return _UNKNOWN
        outcomes, place = found
        scenes = self.measured.scenes
        taken = np.bincount(outcomes.scenes, outcomes.taken[:, place], scenes)
        return self._over_scenes(rate(taken, np.bincount(outcomes.scenes, minlength=scenes)))

    def _delay(self, number: int, kind: Kind, share: int) -> Estimate:
        if (found := self._at(number, kind)) is None:
            return _UNKNOWN
        outcomes, place = found
        delays = outcomes.delays[outcomes.taken[:, place], place]
        if not len(delays):
            return _UNKNOWN
        place = max(0, -(-share * len(delays) // 100) - 1)
        return self._interval(len(delays), lambda rows: float(np.sort(delays[rows])[place]))

    def _over_scenes(self, statistic: Callable[[Rows], float]) -> Estimate:
        return self._interval(self.measured.scenes, statistic)


def _curves(measured: Measured) -> list[Curve]:
    decider, rows = measured.decider, np.arange(measured.scenes)
    made = []
    wanted_ones: tuple[Wanted, ...] = ("answer", "stop")
    for wanted in wanted_ones:
        if not measured.decides(wanted):
            continue
        knob, (taken, waited) = measured.knob(wanted), measured.errors(wanted).of(rows)
        lists = (knob.values.tolist(), taken.tolist(), waited.tolist())
        made.append(Curve(decider.name, wanted, knob.unit, *lists, _marked(measured, wanted)))
    return made


def _marked(measured: Measured, wanted: Wanted) -> dict[str, int]:
    """Places of the settings in use; one that all settings share goes by its value."""
    knob, settings = measured.knob(wanted), measured.decider.settings
    values = [one.answer if wanted == "answer" else one.stop for one in settings]
    places = {
        one.name: knob.place(value)
        for one, value in zip(settings, values, strict=True)
        if value is not None
    }
    if len(places) > 1 and len(set(places.values())) == 1:
        return {f"{values[0]:g} {knob.unit}": next(iter(places.values()))}
    return places


def _better(found: Sequence[Measured], ours: str | None, interval: _Interval) -> list[BetterRow]:
    own = next((one for one in found if one.decider.name == ours), None)
    if own is None:
        return []

    def share(other: Measured, wanted: Wanted) -> Estimate:
        if not (own.decides(wanted) and other.decides(wanted)):
            return _UNKNOWN
        mine, theirs = own.errors(wanted), other.errors(wanted)
        return interval(own.scenes, lambda rows: dominated(mine.of(rows), theirs.of(rows)))

    return [
        BetterRow(one.decider.name, share(one, "answer"), share(one, "stop"))
        for one in found
        if one is not own
    ]
