"""`minmo eval asr`: how well speech is written down, and what streaming costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minmo.audio.resample import LISTENING_RATE_HZ
from minmo.evaluation import paper
from minmo.evaluation.clips import ClipSet
from minmo.evaluation.errors import needs_extra
from minmo.evaluation.normalise import normalise
from minmo.evaluation.report import Table, number, percent
from minmo.evaluation.results import Results
from minmo.evaluation.statistics import Estimate, bootstrap, difference, rate
from minmo.evaluation.systems import System

MadeWith = Callable[[System], Mapping[str, Any]]
"""What the results of a system depend on."""
Progress = Callable[[str, int, int], None]
"""Hears what is done, how much of it, and of how much."""

_HEADER = (
    "set",
    "system",
    "WER % (95 %)",
    "CER % (95 %)",
    "clips",
    "seconds",
    "real-time factor",
    "latency ms",
)
_COMPARED = ("set", "system", "than", "WER points (95 %, paired)")


@dataclass(frozen=True)
class AsrRow:
    """A system on a set.

    Attributes:
        set: its name.
        system: its name.
        wer: word error rate, 0 to 1 and above.
        cer: character error rate, of the normalised words.
        clips: that were heard.
        seconds: of audio.
        real_time_factor: computation over audio.
        latency_ms: median computation from the last sample to the last piece.
    """

    set: str
    system: str
    wer: Estimate
    cer: Estimate
    clips: int
    seconds: float
    real_time_factor: float
    latency_ms: float


@dataclass(frozen=True)
class AsrDifference:
    """How much higher a system's word error rate is than another's on the same clips."""

    set: str
    system: str
    than: str
    wer: Estimate


@dataclass(frozen=True)
class AsrReport:
    """What `minmo eval asr` found."""

    rows: Sequence[AsrRow]
    differences: Sequence[AsrDifference]

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)

    def tables(self) -> list[Table]:
        """For people."""
        rows = [
            (
                row.set,
                row.system,
                percent(row.wer),
                percent(row.cer),
                str(row.clips),
                f"{row.seconds:.0f}",
                f"{row.real_time_factor:.3f}",
                number(row.latency_ms, ".0f"),
            )
            for row in self.rows
        ]
        tables = [Table("Speech recognition", _HEADER, rows, (paper.ASR,))]
        if self.differences:
            compared = [
                (each.set, each.system, each.than, percent(each.wer, signed=True))
                for each in self.differences
            ]
            tables.append(Table("Differences on the same clips", _COMPARED, compared))
        return tables


def measure(
    sets: Sequence[ClipSet],
    systems: Sequence[System],
    *,
    made_with: MadeWith,
    folder: Path | None = None,
    seed: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> AsrReport:
    """Has each system listen to each clip that it has not heard in an earlier run.

    Args:
        sets: the chosen clips.
        systems: the first is compared with each of the others.
        made_with: what the results of a system depend on.
        folder: where they are kept.
        seed: of the intervals.
        progress: hears of every clip.

    Raises:
        EvaluationError: the folder's results were made with something else.
        AudioError: a recording cannot be read.
    """
    _check_jiwer()
    rows: list[AsrRow] = []
    differences: list[AsrDifference] = []
    for one in sets:
        errors: list[_Errors] = []
        for system in systems:
            path = folder and folder / "asr" / one.name / f"{file_name(system.name)}.jsonl"
            with Results(path, made_with(system)) as results:
                _listen(one, system, results, progress)
                errors.append(_score(one, results))
            rows.append(_row(one.name, system.name, errors[-1], seed))
        for system, other in zip(systems[1:], errors[1:], strict=True):
            paired = difference(errors[0].wer, other.wer)
            estimate = bootstrap(len(one.clips), paired, seed=seed)
            differences.append(AsrDifference(one.name, systems[0].name, system.name, estimate))
    return AsrReport(rows, differences)


def file_name(system: str) -> str:
    """A system's name as a file's."""
    return "-".join("".join(c if c.isalnum() else " " for c in system).split())


def _listen(one: ClipSet, system: System, results: Results, progress: Progress) -> None:
    missing = frozenset(clip.id for clip in one.clips if clip.id not in results)
    done, total = len(one.clips) - len(missing), len(one.clips)
    what = f"{one.name}: {system.name}"
    progress(what, done, total)
    for clip, samples in one.read(missing):
        turn = system.listen(clip, samples)
        results.add(
            clip.id,
            text=turn.text,
            seconds=len(samples) / LISTENING_RATE_HZ,
            compute_s=round(turn.compute_s, 5),
            latency_s=None if turn.latency_s is None else round(turn.latency_s, 5),
        )
        done += 1
        progress(what, done, total)


@dataclass(frozen=True)
class _Errors:
    """Of each clip: wrong and all words and characters, and what it took; `[clips]` each."""

    counts: NDArray[np.float64]
    seconds: float
    compute_s: float
    latencies_s: Sequence[float]

    @property
    def wer(self) -> Callable[[NDArray[np.int64]], float]:
        return rate(self.counts[:, 0], self.counts[:, 1])

    @property
    def cer(self) -> Callable[[NDArray[np.int64]], float]:
        return rate(self.counts[:, 2], self.counts[:, 3])


def _score(one: ClipSet, results: Results) -> _Errors:
    rows = [results[clip.id] for clip in one.clips]
    return _Errors(
        np.array(
            [
                error_counts(clip.text, row["text"])
                for clip, row in zip(one.clips, rows, strict=True)
            ]
        ),
        sum(row["seconds"] for row in rows),
        sum(row["compute_s"] for row in rows),
        [row["latency_s"] for row in rows if row["latency_s"] is not None],
    )


def _row(set_name: str, system: str, errors: _Errors, seed: int) -> AsrRow:
    count = len(errors.counts)
    latencies = errors.latencies_s
    return AsrRow(
        set=set_name,
        system=system,
        wer=bootstrap(count, errors.wer, seed=seed),
        cer=bootstrap(count, errors.cer, seed=seed),
        clips=count,
        seconds=errors.seconds,
        real_time_factor=errors.compute_s / errors.seconds if errors.seconds else 0.0,
        latency_ms=1000 * float(np.median(latencies)) if latencies else float("nan"),
    )


def error_counts(expected: str, found: str) -> tuple[int, int, int, int]:
    """Errors of a transcript, after both were normalised.

    Returns:
        Wrong words, words of `expected`, wrong characters, characters of `expected`.
    """
    import jiwer

    wanted, heard = normalise(expected), normalise(found)
    if not wanted:
        return len(heard.split()), 0, len(heard), 0
    words, characters = jiwer.process_words(wanted, heard), jiwer.process_characters(wanted, heard)
    return (
        words.substitutions + words.deletions + words.insertions,
        len(wanted.split()),
        characters.substitutions + characters.deletions + characters.insertions,
        len(wanted),
    )


def _check_jiwer() -> None:
    try:
        import jiwer  # noqa: F401
    except ImportError as error:
        raise needs_extra("jiwer") from error
