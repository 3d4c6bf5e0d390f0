"""`minmo eval instruct`: is a text said as the user asks, slowly, loudly, in a deep voice?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minmo.engine.voice import InstructError
from minmo.evaluation import paper
from minmo.evaluation.asr import Progress, file_name
from minmo.evaluation.clips import Clip, ClipSet
from minmo.evaluation.errors import EvaluationError
from minmo.evaluation.manner import manner_of
from minmo.evaluation.report import Table, percent
from minmo.evaluation.speaking import Speaker, Spoken
from minmo.evaluation.statistics import Estimate, bootstrap, mean
from minmo.evaluation.takes import Takes
from minmo.evaluation.tts import kept

TRIALS = 50
LEAST = {"rate": math.log(1.1), "loudness": 2.0, "pitch": 1.0}
"""The least change that counts: log ratio of rates, dB, semitones; each about twice of what people
just notice."""
_HEADER = ("system", "style", "measure", "followed % (95 %)", "trials", "median change", "least")
_NOTE = (
    "Against the same text without the instruction: rate in syllables a second, from the first "
    "sound to the last; loudness of the frames with speech; pitch as the median fundamental "
    "frequency."
)


@dataclass(frozen=True)
class Style:
    """A way to speak.

    Attributes:
        name: of it.
        measure: what it changes: rate, loudness or pitch.
        sign: 1 for more of it, -1 for less.
        wordings: how it is asked for; every system understands these.
    """

    name: str
    measure: str
    sign: int
    wordings: tuple[str, ...]


STYLES = (
    Style("slow", "rate", -1, ("Speak slowly.", "Say it more slowly, please.", "Talk slower.")),
    Style("fast", "rate", 1, ("Speak fast.", "Say it quickly, please.", "Talk faster.")),
    Style("loud", "loudness", 1, ("Speak loudly.", "Say it louder, please.", "Talk more loudly.")),
    Style("quiet", "loudness", -1, ("Speak quietly.", "Say it softly, please.", "Talk quieter.")),
    Style("high", "pitch", 1, ("Speak in a high voice.", "Say it higher, please.")),
    Style("deep", "pitch", -1, ("Speak in a deep voice.", "Say it lower, please.")),
)


@dataclass(frozen=True)
class Trial:
    """A text with an instruction.

    Attributes:
        id: of its take.
        text: what is said.
        style: how.
        wording: how it is asked for.
    """

    id: str
    text: Clip
    style: Style
    wording: str


@dataclass(frozen=True)
class InstructRow:
    """A system and a style; of the whole, the style is "all".

    Attributes:
        system: its name.
        style: its name.
        measure: what it changes.
        followed: share of trials in which it changed by the least amount, the right way.
        trials: of it.
        change: median, as `LEAST` has it; NaN for the whole, and where nothing was said.
    """

    system: str
    style: str
    measure: str
    followed: Estimate
    trials: int
    change: float


@dataclass(frozen=True)
class InstructReport:
    """What `minmo eval instruct` found."""

    rows: Sequence[InstructRow]

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)

    def tables(self) -> list[Table]:
        """For people."""
        signs = {style.name: style.sign for style in STYLES}
        rows = [
            (
                row.system,
                row.style,
                row.measure,
                percent(row.followed),
                str(row.trials),
                _shown(row.measure, row.change),
                _shown(row.measure, signs.get(row.style, 1) * LEAST.get(row.measure, math.nan)),
            )
            for row in self.rows
        ]
        return [Table("Instructions", _HEADER, rows, (_NOTE, paper.INSTRUCT))]


def trials_of(texts: Sequence[Clip], count: int = TRIALS) -> list[Trial]:
    """Trials: text after text, each in all styles before the next one comes.

    Raises:
        EvaluationError: there are no texts.
    """
    if not texts:
        raise EvaluationError("there are no texts to say")
    made: list[Trial] = []
    for number in range(count):
        turn, place = divmod(number, len(STYLES))
        style, text = STYLES[place], texts[turn % len(texts)]
        wording = style.wordings[turn % len(style.wordings)]
        made.append(Trial(f"{number:03d}-{text.id}-{style.name}", text, style, wording))
    return made


def measure(
    texts: ClipSet,
    systems: Sequence[Speaker],
    *,
    trials: int = TRIALS,
    folder: Path | None = None,
    seed: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> InstructReport:
    """Has each system say each text with an instruction and without one.

    Args:
        texts: to say.
        systems: that are told how.
        trials: how many instructions each gets.
        folder: where audio and results are kept; None to keep none.
        seed: of the intervals.
        progress: hears of every take.

    Raises:
        EvaluationError: there are no texts, or the folder's results were made with something else.
    """
    planned = trials_of(texts.clips, trials)
    rows: list[InstructRow] = []
    with kept(folder, "instruct") as root:
        for system in systems:
            place = root / texts.name / file_name(system.name)
            with Takes(place, system.made_with) as takes:
                _speak(system, planned, takes, progress)
                changes = [_change(trial, takes) for trial in planned]
            rows += _rows(system.name, planned, changes, seed)
    return InstructReport(rows)


def _speak(system: Speaker, trials: Sequence[Trial], takes: Takes, progress: Progress) -> None:
    neutral = {trial.text.id: trial.text for trial in trials}
    total = len(neutral) + len(trials)
    wanted = [*((name, text, "") for name, text in neutral.items())]
    wanted += [(trial.id, trial.text, trial.wording) for trial in trials]
    for done, (name, text, wording) in enumerate(wanted, 1):
        if name not in takes:
            try:
                takes.add(name, system.say(text.text, wording), wording=wording)
            except InstructError:
                # A system that does not know an instruction does not follow it.
                takes.add(name, Spoken(np.zeros(0, np.float32), 1), wording=wording)
        progress(system.name, done, total)


def _change(trial: Trial, takes: Takes) -> float | None:
    """How much more there is of what the style changes; None if nothing was said.

    Log ratio of rates, difference in dB, or semitones.
    """
    before, after = (manner_of(*takes.audio(name)) for name in (trial.text.id, trial.id))
    if before is None or after is None:
        return None
    match trial.style.measure:
        case "rate":
            # The syllables are the same.
            return math.log(before.seconds / after.seconds)
        case "loudness":
            return after.loudness_db - before.loudness_db
        case _:
            if before.pitch_hz is None or after.pitch_hz is None:
                return None
            return 12 * math.log2(after.pitch_hz / before.pitch_hz)


def _rows(
    system: str, trials: Sequence[Trial], changes: Sequence[float | None], seed: int
) -> Iterator[InstructRow]:
    followed = [
        change is not None and change * trial.style.sign >= LEAST[trial.style.measure]
        for trial, change in zip(trials, changes, strict=True)
    ]
    groups = [(style.name, style.measure) for style in STYLES]
    for name, measured in [*groups, ("all", "")]:
        chosen = [n for n, trial in enumerate(trials) if name in (trial.style.name, "all")]
        if not chosen:
            continue
        known = [change for n in chosen if (change := changes[n]) is not None]
        yield InstructRow(
            system=system,
            style=name,
            measure=measured,
            followed=bootstrap(len(chosen), mean([followed[n] for n in chosen]), seed=seed),
            trials=len(chosen),
            change=float(np.median(known)) if known and measured else float("nan"),
        )


def _shown(measured: str, change: float) -> str:
    if not math.isfinite(change):
        return "-"
    match measured:
        case "rate":
            return f"x {math.exp(change):.2f}"
        case "loudness":
            return f"{change:+.1f} dB"
        case _:
            return f"{change:+.1f} semitones"
