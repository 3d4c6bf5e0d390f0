"""What became of the questions that a system was asked in scenes, at every setting of its knobs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray

from minmo.evaluation.duplex_deciders import Decider, Figures, Knob, Scores, Trial
from minmo.evaluation.duplex_questions import Kind, Stretch, Wanted, questions
from minmo.evaluation.statistics import Rows
from minmo.model.duplex_labels import DuplexLabels, Turn, duplex_labels
from minmo.model.duplex_scores import Scored, count_changes

OFFSETS = (1, 5, 10)
"""Steps K by which a predicted change may miss the true one (paper, Table 22)."""
ANSWER_ERRORS: tuple[tuple[Kind, ...], Kind] = (("pause",), "end")
STOP_ERRORS: tuple[tuple[Kind, ...], Kind] = (
    ("back-channel", "other speech", "other sound", "nobody"),
    "interruption",
)
"""Where the floor must not be taken, and where it must be, soon: the two errors of a decision."""
STOP_KINDS: frozenset[Kind] = frozenset({*STOP_ERRORS[0], STOP_ERRORS[1]})
"""Questions about stopping; all others are about answering."""


class Outcomes(NamedTuple):
    """Questions of some kind.

    Attributes:
        scenes: `[questions]`, the number of each one's scene.
        longest: `[questions]`, seconds that each lasts.
        delays: `[questions, settings]`, seconds until the floor was taken; infinite where not.
    """

    scenes: NDArray[np.int64]
    longest: Figures
    delays: Figures

    @property
    def taken(self) -> NDArray[np.bool_]:
        """`[questions, settings]`, where the floor was taken."""
        return np.isfinite(self.delays)

    @property
    def waited(self) -> Figures:
        """`[questions, settings]`, delays; where the floor was not taken, the whole question."""
        return np.minimum(self.delays, self.longest[:, None])


class Errors(NamedTuple):
    """The two errors of a decision at every setting, summed for each scene.

    Attributes:
        taken: `[scenes, settings]`, how often the floor was taken where it must not be.
        chances: `[scenes]`, how often that could have been.
        waited: `[scenes, settings]`, seconds until the floor was taken where it must be.
        asked: `[scenes]`, how often it must.
    """

    taken: Figures
    chances: Figures
    waited: Figures
    asked: Figures

    def of(self, rows: Rows) -> tuple[Figures, Figures]:
        """Share of wrong decisions and mean delay `[settings]`, of scenes `[scenes]`."""
        chances, asked = self.chances[rows].sum(), self.asked[rows].sum()
        nothing = np.full(self.taken.shape[1], np.nan)
        return (
            self.taken[rows].sum(0) / chances if chances else nothing,
            self.waited[rows].sum(0) / asked if asked else nothing,
        )


@dataclass
class Measured:
    """What became of a system's decisions.

    Attributes:
        decider: the system.
        scenes: how many it was asked in.
        step: seconds of a step of the predictor.
    """

    decider: Decider
    step: float
    scenes: int = 0
    _delays: dict[Kind, list[tuple[int, float, Figures]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    _changes: dict[Wanted, list[NDArray[np.int64]]] = field(
        default_factory=lambda: {"answer": [], "stop": []}
    )

    def ask(self, trial: Trial) -> None:
        """Asks the system all questions of a scene."""
        decider = self.decider
        parts = self._parts(trial)
        for question in questions(trial.scene):
            if (part := parts.get(question.wanted)) is not None:
                scores, knob = part
                delays = scores.first(question.start, question.end, knob.values)
                longest = max(0.0, question.end - question.start)
                self._delays[question.kind].append((self.scenes, longest, delays))
        count = int(trial.scene.seconds / self.step)
        labels = labels_of(trial, self.step, count)
        for number, (wanted, (scores, _)) in enumerate(parts.items()):
            said = torch.from_numpy(scores.on_steps(self.step, count))
            asked = Scored(said, labels.labels[:, number] > 0, labels.asked[:, number])
            knobs = [one.answer if wanted == "answer" else one.stop for one in decider.settings]
            found = [
                [count_changes([asked], knob or 0.0, within) for within in OFFSETS]
                for knob in knobs
            ]
            self._changes[wanted].append(np.array(found, np.int64))
        self.scenes += 1

    def of(self, *kinds: Kind) -> Outcomes:
        """What became of the questions of these kinds; of an answer, or of a stop."""
        found = [one for kind in kinds for one in self._delays.get(kind, ())]
        if not found:
            wanted: Wanted = "stop" if set(kinds) <= STOP_KINDS else "answer"
            settings = len(self.knob(wanted).values)
            return Outcomes(np.zeros(0, np.int64), np.zeros(0), np.zeros((0, settings)))
        scenes, longest, delays = zip(*found, strict=True)
        return Outcomes(np.array(scenes), np.array(longest), np.array(delays))

    def decides(self, wanted: Wanted) -> bool:
        """Whether it takes this decision."""
        return wanted == "answer" or self.decider.stop_knob is not None

    def knob(self, wanted: Wanted) -> Knob:
        """The knob of a decision that it takes."""
        knob = self.decider.answer_knob if wanted == "answer" else self.decider.stop_knob
        assert knob is not None
        return knob

    def errors(self, wanted: Wanted) -> Errors:
        """The two errors of a decision."""
        wrong, right = ANSWER_ERRORS if wanted == "answer" else STOP_ERRORS
        settings = len(self.knob(wanted).values)
        sums = [np.zeros((self.scenes, settings)), np.zeros(self.scenes)]
        sums += [np.zeros((self.scenes, settings)), np.zeros(self.scenes)]
        false, due = self.of(*wrong), self.of(right)
        for place, (scenes, values) in enumerate(
            ((false.scenes, false.taken), (due.scenes, due.waited))
        ):
            if len(scenes):
                np.add.at(sums[2 * place], scenes, values)
            np.add.at(sums[2 * place + 1], scenes, 1)
        return Errors(*sums)

    def f1(self, wanted: Wanted, setting: int, offset: int) -> Callable[[Rows], float]:
        """The statistic F1 of a question's changes.

        Args:
            wanted: of which decision.
            setting: number of the system's setting.
            offset: number of the offset.
        """
        counts = np.array(self._changes[wanted])[:, setting, offset]

        def statistic(rows: Rows) -> float:
            hits, predicted, true = counts[rows].sum(0)
            return float(2 * hits / (predicted + true)) if predicted + true else float("nan")

        return statistic

    def _parts(self, trial: Trial) -> dict[Wanted, tuple[Scores, Knob]]:
        parts: dict[Wanted, tuple[Scores, Knob]] = {
            "answer": (self.decider.answering(trial), self.decider.answer_knob)
        }
        stops, knob = self.decider.stopping(trial), self.decider.stop_knob
        if stops is not None and knob is not None:
            parts["stop"] = stops, knob
        return parts


def labels_of(trial: Trial, step: float, count: int) -> DuplexLabels:
    """What is true at the end of each step of a scene; how fast a user is understood is drawn."""
    times = torch.arange(1, count + 1, dtype=torch.float64) * step
    generator = torch.Generator().manual_seed(crc32(trial.name.encode()))
    return duplex_labels(times, _turns(trial.scene.user), _turns(trial.scene.assistant), generator)


def dominated(ours: tuple[Figures, Figures], theirs: tuple[Figures, Figures]) -> float:
    """Share of the points of a curve to which another one has a better point.

    Better is smaller in one error and no larger in the other. Settings that come to the same are
    one point.

    Args:
        ours: both errors, `[settings]` each.
        theirs: the same, of the curve that is looked at.

    Returns:
        NaN where an error is not known.
    """
    points = np.unique(np.column_stack(theirs), axis=0)
    own = np.column_stack(ours)
    if not (np.isfinite(points).all() and np.isfinite(own).all()):
        return float("nan")
    no_larger = np.all(own[None] <= points[:, None], axis=-1)
    smaller = np.any(own[None] < points[:, None], axis=-1)
    return float(np.mean(np.any(no_larger & smaller, axis=1)))


def _turns(stretches: Sequence[Stretch]) -> list[Turn]:
    return [Turn(one.start, one.end) for one in stretches]
