"""`minmo eval sqa`: are spoken questions answered as well as written ones, and how soon?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minmo.audio.resample import LISTENING_RATE_HZ
from minmo.evaluation import paper
from minmo.evaluation.answering import Answer, Answerer
from minmo.evaluation.answers import is_right
from minmo.evaluation.asr import MadeWith, Progress, file_name
from minmo.evaluation.clips import Clip, ClipSet
from minmo.evaluation.report import Table, number, percent, plain
from minmo.evaluation.results import Results
from minmo.evaluation.statistics import Estimate, bootstrap, mean, ratio
from minmo.evaluation.systems import System, TrueText, Turn

_HEADER = (
    "set",
    "system",
    "right % (95 %)",
    "of text (95 %, paired)",
    "questions",
    "first token ms",
    "p90 ms",
)
LATENCY_CLIPS = 50
"""Questions of each set on which the first token is timed, one at a time."""


@dataclass(frozen=True)
class SqaRow:
    """A system on a set of questions.

    Attributes:
        set: its name.
        system: its name.
        accuracy: share of answers that contain a right one.
        ratio_to_text: that share over the one from the true text, on the same questions; None
            where the text was not asked.
        clips: questions.
        seconds: of audio.
        first_token_ms: median computation from the last sample to the first token of the answer;
            NaN where nothing was timed.
        first_token_p90_ms: the same, of the slowest tenth the quickest.
    """

    set: str
    system: str
    accuracy: Estimate
    ratio_to_text: Estimate | None
    clips: int
    seconds: float
    first_token_ms: float
    first_token_p90_ms: float


@dataclass(frozen=True)
class SqaReport:
    """What `minmo eval sqa` found."""

    rows: Sequence[SqaRow]

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)

    def tables(self) -> list[Table]:
        """For people."""
        rows = [
            (
                row.set,
                row.system,
                percent(row.accuracy),
                "-" if row.ratio_to_text is None else plain(row.ratio_to_text),
                str(row.clips),
                number(row.first_token_ms, ".0f"),
                number(row.first_token_p90_ms, ".0f"),
            )
            for row in self.rows
        ]
        return [Table("Spoken question answering", _HEADER, rows, (paper.SQA,))]


def measure(
    sets: Sequence[ClipSet],
    systems: Sequence[System],
    answerer: Answerer,
    *,
    made_with: MadeWith,
    folder: Path | None = None,
    latency_clips: int = LATENCY_CLIPS,
    seed: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> SqaReport:
    """Asks each system each question that it was not asked in an earlier run.

    Args:
        sets: the chosen questions, all with right answers.
        systems: those that listen.
        answerer: the LLM that answers.
        made_with: what the results of a system depend on.
        folder: where they are kept.
        latency_clips: questions of each set that are timed.
        seed: of the intervals.
        progress: hears of every question.

    Raises:
        EvaluationError: the folder's results were made with something else, or a question is too
            long.
        AudioError: a recording cannot be read.
    """
    rows: list[SqaRow] = []
    for one in sets:
        found: dict[str, _Outcome] = {}
        known: dict[str, Answer] = {}
        for system in systems:
            name = f"{file_name(system.name)}.jsonl"
            with Results(folder and folder / "sqa" / one.name / name, made_with(system)) as results:
                ask(one, system, answerer, results, known, progress)
                times = folder and folder / "sqa-latency" / one.name / name
                with Results(times, made_with(system)) as timed:
                    _time(one, system, answerer, timed, latency_clips, progress)
                    found[system.name] = _outcome(one, results, timed)
        rows += [_row(one.name, name, found, seed) for name in found]
    return SqaReport(rows)


def ask(
    one: ClipSet,
    system: System,
    answerer: Answerer,
    results: Results,
    known: dict[str, Answer],
    progress: Progress,
) -> None:
    """Has a system answer the clips of a set that have no result yet.

    Args:
        one: the set.
        system: that listens.
        answerer: the LLM.
        results: of the system; gets what was heard and answered.
        known: answers to texts, which grows: the same text has the same answer.
        progress: hears of every clip.
    """
    missing = frozenset(clip.id for clip in one.clips if clip.id not in results)
    total, what = len(one.clips), f"{one.name}: {system.name}"
    progress(what, total - len(missing), total)
    heard: dict[str, tuple[Turn, float]] = {}

    def keep(key: str, answer: Answer) -> None:
        turn, seconds = heard.pop(key)
        if turn.embeddings is None:
            known[turn.text] = answer
        results.add(key, heard=turn.text, answer=answer.text, tokens=answer.tokens, seconds=seconds)
        progress(what, total - len(missing - results.keys()), total)

    def turns() -> Iterator[tuple[str, Turn]]:
        for clip, samples in one.read(missing):
            turn = system.listen(clip, samples)
            heard[clip.id] = turn, len(samples) / LISTENING_RATE_HZ
            if turn.embeddings is None and turn.text in known:
                keep(clip.id, known[turn.text])
            else:
                yield clip.id, turn

    for key, answer in answerer.answers(turns()):
        keep(key, answer)


def _time(
    one: ClipSet,
    system: System,
    answerer: Answerer,
    results: Results,
    count: int,
    progress: Progress,
) -> None:
    """Times the first token; text is not heard, so that there is nothing to time."""
    if isinstance(system, TrueText):
        return
    wanted = [clip.id for clip in one.clips[:count]]
    missing = frozenset(name for name in wanted if name not in results)
    what = f"{one.name}: {system.name}, first token"
    for clip, samples in one.read(missing):
        results.add(clip.id, first_token_s=round(answerer.first_token_s(system, clip, samples), 5))
        progress(what, len(wanted) - len(missing - results.keys()), len(wanted))


@dataclass(frozen=True)
class _Outcome:
    right: NDArray[np.float64]
    seconds: float
    first_token_s: Sequence[float]


def right_answers(clips: Sequence[Clip], results: Results) -> NDArray[np.float64]:
    """1 for each clip whose answer is right, 0 for the others: `[clips]`."""
    return np.array([is_right(results[clip.id]["answer"], clip.answers) for clip in clips], float)


def _outcome(one: ClipSet, results: Results, timed: Results) -> _Outcome:
    return _Outcome(
        right_answers(one.clips, results),
        sum(results[clip.id]["seconds"] for clip in one.clips),
        [timed[clip.id]["first_token_s"] for clip in one.clips if clip.id in timed],
    )


def _row(set_name: str, system: str, found: Mapping[str, _Outcome], seed: int) -> SqaRow:
    own, text = found[system], found.get(TrueText.name)
    count, accuracy = len(own.right), mean(own.right)
    median, slow = (
        (1000 * float(np.percentile(own.first_token_s, q)) for q in (50, 90))
        if own.first_token_s
        else (float("nan"), float("nan"))
    )
    return SqaRow(
        set=set_name,
        system=system,
        accuracy=bootstrap(count, accuracy, seed=seed),
        ratio_to_text=None
        if text is None
        else bootstrap(count, ratio(accuracy, mean(text.right)), seed=seed),
        clips=count,
        seconds=own.seconds,
        first_token_ms=median,
        first_token_p90_ms=slow,
    )
