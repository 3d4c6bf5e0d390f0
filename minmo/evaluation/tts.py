"""`minmo eval tts`: is a text that is read out understood, does it sound well, is it quick?"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import numpy as np

from minmo.audio.resample import LISTENING_RATE_HZ
from minmo.evaluation import paper
from minmo.evaluation.asr import Progress, error_counts, file_name
from minmo.evaluation.clips import Choice, Clip, ClipSet
from minmo.evaluation.errors import EvaluationError
from minmo.evaluation.judges import Judge, Judgement
from minmo.evaluation.report import Table, number, percent, plain
from minmo.evaluation.speaking import Speaker, Spoken
from minmo.evaluation.statistics import Estimate, Rows, bootstrap, difference, mean, rate
from minmo.evaluation.takes import Takes

HELD_OUT = "held-out"
"""Name of the set of sentences that MinMo brings, on which nothing was trained."""

_COMPARED = ("set", "system", "than", "recogniser", "WER points (95 %, paired)")
_NOTE = (
    "First audio is the median time from the fifth text token; border step is the largest step "
    "between two samples where chunks meet, over the 99.9th percentile of steps inside them."
)


class Recordings:
    """What was recorded, of sets that have recordings: how well judges understand people."""

    name = "recordings"
    made_with: Mapping[str, Any] = {}


@dataclass(frozen=True)
class TtsRow:
    """A system on a set.

    Attributes:
        set: its name.
        system: its name.
        wer: word error rate by recogniser, 0 to 1 and above.
        figures: mean of each other judge's figure.
        clips: texts.
        unsaid: of these, texts of which nothing was said.
        seconds: of audio.
        real_time_factor: time to speak over audio; NaN for recordings.
        first_audio_ms: median time from the fifth text token to audio; NaN where there is none.
        borders: of chunks, all together.
        border_step: largest step at one of them, over the 99.9th percentile inside its chunks;
            NaN where there is none.
    """

    set: str
    system: str
    wer: Mapping[str, Estimate]
    figures: Mapping[str, Estimate]
    clips: int
    unsaid: int
    seconds: float
    real_time_factor: float
    first_audio_ms: float
    borders: int
    border_step: float


@dataclass(frozen=True)
class TtsDifference:
    """How much higher a system's word error rate is than another's on the same texts."""

    set: str
    system: str
    than: str
    recogniser: str
    wer: Estimate


@dataclass(frozen=True)
class TtsReport:
    """What `minmo eval tts` found."""

    rows: Sequence[TtsRow]
    differences: Sequence[TtsDifference]

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)

    def tables(self) -> list[Table]:
        """For people."""
        recognisers = list(dict.fromkeys(name for row in self.rows for name in row.wer))
        figures = list(dict.fromkeys(name for row in self.rows for name in row.figures))
        header = (
            "set",
            "system",
            *(f"WER % {name} (95 %)" for name in recognisers),
            *(f"{name} (95 %)" for name in figures),
            "texts",
            "unsaid",
            "real-time factor",
            "first audio ms",
            "border step",
        )
        rows = [
            (
                row.set,
                row.system,
                *(percent(row.wer[name]) for name in recognisers),
                *(plain(row.figures[name]) for name in figures),
                str(row.clips),
                str(row.unsaid),
                number(row.real_time_factor, ".3f"),
                number(row.first_audio_ms, ".0f"),
                number(row.border_step, ".2f"),
            )
            for row in self.rows
        ]
        tables = [Table("Speech from text", header, rows, (_NOTE, paper.TTS))]
        if self.differences:
            compared = [
                (each.set, each.system, each.than, each.recogniser, percent(each.wer, signed=True))
                for each in self.differences
            ]
            tables.append(Table("Differences on the same texts", _COMPARED, compared))
        return tables


def held_out(limit: int | None = None, seed: int = 0) -> ClipSet:
    """The sentences that MinMo brings, without recordings.

    Args:
        limit: at most so many, drawn at random.
        seed: of the draw.
    """
    return texts_of(HELD_OUT, files("minmo.evaluation") / "texts" / f"{HELD_OUT}.txt", limit, seed)


def texts_of(
    name: str, file: Path | Traversable, limit: int | None = None, seed: int = 0
) -> ClipSet:
    """The texts of a file, one a line, without recordings.

    Args:
        name: of the set.
        file: a path, or a file of a package.
        limit: at most so many, drawn at random.
        seed: of the draw.

    Raises:
        EvaluationError: it cannot be read, or is empty.
    """
    try:
        lines = [line.strip() for line in file.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"cannot read {file}: {error}; give UTF-8, a text a line") from error
    if not lines:
        raise EvaluationError(f"{file} has no text; give a text a line")
    # Another text in a line is another clip, so that nothing is taken for what it was before.
    clips = [
        Clip(name, f"{number:04d}-{sha256(line.encode()).hexdigest()[:8]}", line)
        for number, line in enumerate(lines, 1)
    ]
    return ClipSet(name, Choice(limit=limit, seed=seed).of(clips))


def measure(
    sets: Sequence[ClipSet],
    systems: Sequence[Speaker | Recordings],
    judges: Sequence[Judge],
    *,
    folder: Path | None = None,
    seed: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> TtsReport:
    """Has each system say each text that it has not said in an earlier run, and judges hear it.

    Args:
        sets: the chosen texts.
        systems: the first is compared with each of the others.
        judges: each hears everything.
        folder: where audio and results are kept; None to keep none.
        seed: of the intervals.
        progress: hears of every text.

    Raises:
        EvaluationError: the folder's results were made with something else, or recordings are to
            be compared and no set has any.
        AudioError: a recording cannot be read.
    """
    rows: list[TtsRow] = []
    differences: list[TtsDifference] = []
    with kept(folder, "tts") as root:
        for one in sets:
            found: list[tuple[str, dict[str, list[Judgement]]]] = []
            for system in systems:
                if isinstance(system, Recordings) and not _has_recordings(one):
                    continue
                place = root / one.name / file_name(system.name)
                with Takes(place, system.made_with) as takes:
                    _speak(one, system, takes, progress)
                    opinions = listen(one, system.name, takes, judges, progress)
                    rows.append(_row(one, system.name, takes, opinions, seed))
                found.append((system.name, opinions))
            differences += _differences(one, found, seed)
    if not rows:
        raise EvaluationError(
            "these sets have no recordings; choose other systems with --system, or give a folder "
            "of recordings with --recordings"
        )
    return TtsReport(rows, differences)


@contextmanager
def kept(folder: Path | None, suite: str) -> Iterator[Path]:
    """The folder of a suite's takes: in the given one, or one that is gone afterwards."""
    if folder is not None:
        yield folder / suite
        return
    with tempfile.TemporaryDirectory(prefix="minmo-eval-") as made:
        yield Path(made)


def listen(
    one: ClipSet, system: str, takes: Takes, judges: Sequence[Judge], progress: Progress
) -> dict[str, list[Judgement]]:
    """What each judge makes of each take, by the judge's name."""
    opinions: dict[str, list[Judgement]] = {}
    for judge in judges:
        heard = opinions[judge.name] = []
        for _, judgement in takes.judged(judge, one.clips):
            heard.append(judgement)
            progress(f"{one.name}: {system}, {judge.name}", len(heard), len(one.clips))
    return opinions


def _has_recordings(one: ClipSet) -> bool:
    return bool(one.shards or one.files)


def _speak(one: ClipSet, system: Speaker | Recordings, takes: Takes, progress: Progress) -> None:
    missing = frozenset(clip.id for clip in one.clips if clip.id not in takes)
    done, what = len(one.clips) - len(missing), f"{one.name}: {system.name}"
    progress(what, done, len(one.clips))
    for clip, spoken in _spoken(one, system, missing):
        takes.add(clip.id, spoken)
        done += 1
        progress(what, done, len(one.clips))


def _spoken(
    one: ClipSet, system: Speaker | Recordings, missing: frozenset[str]
) -> Iterator[tuple[Clip, Spoken]]:
    if isinstance(system, Recordings):
        for clip, samples in one.read(missing):
            yield clip, Spoken(samples, LISTENING_RATE_HZ)
        return
    for clip in one.clips:
        if clip.id in missing:
            yield clip, system.say(clip.text)


def _row(
    one: ClipSet,
    system: str,
    takes: Takes,
    opinions: Mapping[str, Sequence[Judgement]],
    seed: int,
) -> TtsRow:
    said = [takes[clip.id] for clip in one.clips]
    seconds = sum(take["seconds"] for take in said)
    timed = [take for take in said if take["compute_s"] is not None and take["seconds"]]
    first = [take["first_audio_s"] for take in said if take["first_audio_s"] is not None]
    steps = [take["border_step"] for take in said if take["border_step"] is not None]
    nothing = float("nan")
    figures = {
        name: [value for value in heard if not isinstance(value, str | None)]
        for name, heard in opinions.items()
        if not _is_heard(heard)
    }
    return TtsRow(
        set=one.name,
        system=system,
        wer={
            name: bootstrap(len(one.clips), word_errors(one.clips, heard), seed=seed)
            for name, heard in opinions.items()
            if _is_heard(heard)
        },
        figures={
            name: bootstrap(len(values), mean(values), seed=seed)
            if values
            else Estimate(nothing, nothing, nothing)
            for name, values in figures.items()
        },
        clips=len(said),
        unsaid=sum(not take["seconds"] for take in said),
        seconds=seconds,
        real_time_factor=sum(take["compute_s"] for take in timed)
        / sum(take["seconds"] for take in timed)
        if timed
        else nothing,
        first_audio_ms=1000 * float(np.median(first)) if first else nothing,
        borders=sum(take["borders"] for take in said),
        border_step=max(steps, default=nothing),
    )


def _is_heard(judgements: Sequence[Judgement]) -> bool:
    """Whether they are a recogniser's."""
    return any(isinstance(judgement, str) for judgement in judgements)


def word_errors(clips: Sequence[Clip], heard: Sequence[Judgement]) -> Callable[[Rows], float]:
    """The word error rate of what was heard, as a statistic of clips."""
    counts = np.array(
        [error_counts(clip.text, str(text))[:2] for clip, text in zip(clips, heard, strict=True)]
    )
    return rate(counts[:, 0], counts[:, 1])


def _differences(
    one: ClipSet, found: Sequence[tuple[str, Mapping[str, Sequence[Judgement]]]], seed: int
) -> Iterator[TtsDifference]:
    if not found:
        return
    first, own = found[0]
    for other, opinions in found[1:]:
        for name, heard in opinions.items():
            if _is_heard(heard):
                paired = difference(
                    word_errors(one.clips, own[name]), word_errors(one.clips, heard)
                )
                estimate = bootstrap(len(one.clips), paired, seed=seed)
                yield TtsDifference(one.name, first, other, name, estimate)
