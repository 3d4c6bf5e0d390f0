"""Test sets: folders of Lhotse Shar, or of recordings with a table of what is said in them."""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from minmo.audio.pcm import Samples, read_file
from minmo.audio.resample import LISTENING_RATE_HZ, resample
from minmo.evaluation.errors import EvaluationError, needs_extra

_CUTS = "cuts.jsonl.gz"
_RECORDINGS = "recording.tar"
_NUMBERED = re.compile(r"\.\d+$")
_ENDINGS = (".wav", ".flac", ".opus", ".ogg", ".mp3")
_NAME_COLUMNS = ("path", "file", "id")
_BETWEEN_ANSWERS = "|"


@dataclass(frozen=True)
class Clip:
    """What is known of a recording.

    Attributes:
        set: name of the set that it belongs to.
        id: unique within the set.
        text: what is said, as written.
        kind: question, turn, sentence, or nothing.
        source: where the text comes from, or nothing.
        answers: right answers of a question.
        split: train, valid or test in a table of recordings, or nothing.
    """

    set: str
    id: str
    text: str
    kind: str = ""
    source: str = ""
    answers: tuple[str, ...] = ()
    split: str = ""

    @property
    def key(self) -> str:
        """Unique among all sets."""
        return f"{self.set}/{self.id}"


@dataclass(frozen=True)
class Choice:
    """Which clips of a set are used.

    Attributes:
        sets: only these; all if empty.
        kinds: only of these kinds; all if empty.
        sources: only from these sources; all if empty.
        splits: only these splits of a table of recordings; all if empty.
        limit: at most so many of each set, drawn at random; all if None. A larger limit draws the
            same ones and more.
        seed: of the draw.
        with_answers: only questions whose right answers are known.
    """

    sets: frozenset[str] = frozenset()
    kinds: frozenset[str] = frozenset()
    sources: frozenset[str] = frozenset()
    splits: frozenset[str] = frozenset()
    limit: int | None = None
    seed: int = 0
    with_answers: bool = False

    def of(self, clips: Sequence[Clip]) -> list[Clip]:
        """Those of a set, in the set's order."""
        fitting = [clip for clip in clips if self._fits(clip)]
        if self.limit is None or self.limit >= len(fitting):
            return fitting
        order = np.random.default_rng(self.seed).permutation(len(fitting))
        return [fitting[number] for number in sorted(order[: self.limit])]

    def _fits(self, clip: Clip) -> bool:
        return (
            (not self.sets or clip.set in self.sets)
            and (not self.kinds or clip.kind in self.kinds)
            and (not self.sources or clip.source in self.sources)
            and (not self.splits or clip.split in self.splits)
            and (not self.with_answers or bool(clip.answers))
        )


@dataclass(frozen=True)
class ClipSet:
    """A set of recordings.

    Attributes:
        name: in tables and in results.
        clips: in the order in which `read` gives them.
        shards: folders of Lhotse Shar; none for a folder of recordings.
        files: the recording of each id, in a folder of recordings.
    """

    name: str
    clips: Sequence[Clip]
    shards: Sequence[Path] = ()
    files: dict[str, Path] = field(default_factory=dict)

    def chosen(self, choice: Choice) -> ClipSet:
        """The set with chosen clips only."""
        return replace(self, clips=choice.of(self.clips))

    def read(self, wanted: frozenset[str] | None = None) -> Iterator[tuple[Clip, Samples]]:
        """The clips with their samples at 16 kHz, one by one.

        Args:
            wanted: only those with these ids; all if None.

        Raises:
            AudioError: a recording cannot be read.
            EvaluationError: a recording is missing.
        """
        clips = {clip.id: clip for clip in self.clips if wanted is None or clip.id in wanted}
        if not clips:
            return
        if not self.shards:
            for clip in clips.values():
                yield clip, _at_listening_rate(*read_file(self.files[clip.id]))
            return
        for shard in self.shards:
            yield from _read_shard(shard, clips)


def read_sets(folders: Sequence[Path], choice: Choice) -> list[ClipSet]:
    """The sets that lie in folders, with the chosen clips of each.

    A folder is a shard itself (`cuts.jsonl.gz` and `recording.tar`), holds shards (`test.0000`,
    `test.0001`, ... are the set `test`), or holds a CSV file with the columns `path`, `file` or
    `id`, and `text`; and where they are known `kind`, `source`, and `answers` with | between them.

    Raises:
        EvaluationError: a folder has no clips, or none that is chosen.
    """
    sets: dict[str, ClipSet] = {}
    for folder in folders:
        for found in _sets_of(folder):
            known = sets.get(found.name)
            if known is None:
                sets[found.name] = found
            elif known.shards and found.shards:
                shards = [*known.shards, *(s for s in found.shards if s not in known.shards)]
                sets[found.name] = _shar_set(found.name, shards)
            else:
                raise EvaluationError(
                    f"{folder} and a folder before it both hold a set named {found.name!r}; give "
                    "one of them another name"
                )
    chosen = [kept for one in sets.values() if (kept := one.chosen(choice)).clips]
    if not chosen:
        names = ", ".join(f"{one.name} ({len(one.clips)} clips)" for one in sets.values())
        raise EvaluationError(
            f"no clip is left of {names}: {_filters(choice)}; use another --set, --kind, --source "
            "or folder"
        )
    return chosen


def _filters(choice: Choice) -> str:
    parts = [f"set {' or '.join(sorted(choice.sets))}"] if choice.sets else []
    parts += [f"kind {' or '.join(sorted(choice.kinds))}"] if choice.kinds else []
    parts += [f"source {' or '.join(sorted(choice.sources))}"] if choice.sources else []
    parts += [f"split {' or '.join(sorted(choice.splits))}"] if choice.splits else []
    parts += ["right answers"] if choice.with_answers else []
    return f"none has {' and '.join(parts)}" if parts else "they are empty"


def _sets_of(folder: Path) -> list[ClipSet]:
    if not folder.is_dir():
        raise EvaluationError(f"there is no folder {folder}")
    if (folder / _CUTS).is_file():
        return [_shar_set(_NUMBERED.sub("", folder.name), [folder])]
    shards: dict[str, list[Path]] = {}
    for inner in sorted(folder.iterdir()):
        # A name with a dot in front is a shard that is being written.
        if not inner.name.startswith(".") and (inner / _CUTS).is_file():
            shards.setdefault(_NUMBERED.sub("", inner.name), []).append(inner)
    if shards:
        return [_shar_set(name, found) for name, found in shards.items()]
    tables = sorted(folder.glob("*.csv"))
    if tables:
        return [_recordings_set(folder, tables)]
    raise EvaluationError(
        f"{folder} holds no clips: neither {_CUTS} nor folders with it, nor a CSV file with the "
        "columns path and text"
    )


def _shar_set(name: str, shards: Sequence[Path]) -> ClipSet:
    clips = [clip for shard in shards for clip in _cuts(name, shard / _CUTS)]
    return ClipSet(name, clips, shards)


def _cuts(name: str, path: Path) -> Iterator[Clip]:
    # Only what is said is read here: thousands of cuts take Lhotse seconds.
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                yield _clip(name, json.loads(line))
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise EvaluationError(f"cannot read {path}: {error}; make the shard again") from error


def _clip(name: str, cut: dict[str, Any]) -> Clip:
    supervisions = cut.get("supervisions") or [{}]
    custom = supervisions[0].get("custom") or {}
    return Clip(
        set=name,
        id=cut["id"],
        text=" ".join(part.get("text") or "" for part in supervisions).strip(),
        kind=custom.get("kind") or "",
        source=custom.get("source") or "",
        answers=tuple(custom.get("answers") or ()),
    )


def _read_shard(shard: Path, clips: dict[str, Clip]) -> Iterator[tuple[Clip, Samples]]:
    try:
        from lhotse import CutSet
    except ImportError as error:
        raise needs_extra("lhotse") from error
    fields = {"cuts": [str(shard / _CUTS)], "recording": [str(shard / _RECORDINGS)]}
    if not (shard / _RECORDINGS).is_file():
        raise EvaluationError(f"{shard} has no {_RECORDINGS}; make the shard again")
    for cut in CutSet.from_shar(fields=fields):
        clip = clips.get(cut.id)
        if clip is not None:
            samples = cut.load_audio()[0]
            yield clip, _at_listening_rate(samples, cut.sampling_rate)


def _recordings_set(folder: Path, tables: Sequence[Path]) -> ClipSet:
    clips: dict[str, Clip] = {}
    files: dict[str, Path] = {}
    for table in tables:
        with table.open(newline="", encoding="utf-8") as lines:
            reader = csv.DictReader(lines)
            columns = reader.fieldnames or ()
            column = next((name for name in _NAME_COLUMNS if name in columns), None)
            if column is None or "text" not in columns:
                raise EvaluationError(
                    f"{table} has the columns {', '.join(columns)}; it needs text and one of "
                    f"{', '.join(_NAME_COLUMNS)}"
                )
            for row in reader:
                name = row[column]
                files[name] = _recording(folder, name, table)
                answers = (row.get("answers") or "").split(_BETWEEN_ANSWERS)
                clips[name] = Clip(
                    set=folder.name,
                    id=name,
                    text=row["text"] or "",
                    kind=row.get("kind") or "",
                    source=row.get("source") or "",
                    answers=tuple(answer.strip() for answer in answers if answer.strip()),
                    split=row.get("split") or "",
                )
    return ClipSet(folder.name, list(clips.values()), files=files)


def _recording(folder: Path, name: str, table: Path) -> Path:
    """The file of a row: beside its table, or in a folder of the table's name."""
    for place in (folder, folder / table.stem, folder / "audio"):
        for ending in ("", *_ENDINGS):
            path = place / f"{name}{ending}"
            if path.is_file():
                return path
    raise EvaluationError(
        f"{table} names {name!r}, and there is no such recording in {folder} or {table.stem}/ or "
        f"audio/ within it ({', '.join(_ENDINGS)})"
    )


def _at_listening_rate(samples: Samples, rate: int) -> Samples:
    kept = np.ascontiguousarray(samples, np.float32)
    return resample(kept, rate, LISTENING_RATE_HZ)
