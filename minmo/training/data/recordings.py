"""Recordings, with transcripts or without, to shards like those of synthetic speech."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any, TextIO

from minmo.audio.pcm import AudioError, Samples, read_file
from minmo.audio.resample import LISTENING_RATE_HZ, resample
from minmo.training.data.errors import DataError
from minmo.training.data.levels import SPEECH_DBFS, amplified, flaw_of, speech_dbfs, trimmed
from minmo.training.data.lines import SPLITS, Split
from minmo.training.data.shards import CLIPS, Clip, Made, Wanted, band_of, digest_of, write_missing

ENDINGS = (".wav", ".flac", ".ogg", ".opus", ".mp3")
_SPLIT_NAMES: Mapping[str, Split] = {"validation": "valid", "dev": "valid", "val": "valid"}
_SHORTEST_SECONDS, _LONGEST_SECONDS = 0.4, 30.0
_MEASURED = 100
"""Recordings of a speaker, about, that tell how loud they are."""


@dataclass(frozen=True)
class Columns:
    """Names of a table's columns; one that it lacks is None or says nothing.

    Attributes:
        recording: a path, or what a file's name is without its ending.
        text: what is said.
        split: the set, by its usual names.
        speaker: who speaks.
    """

    recording: str = "id"
    text: str = "text"
    split: str = "split"
    speaker: str = "speaker"


@dataclass(frozen=True)
class Recorded:
    """One recording.

    Attributes:
        id: of it, among those of its name.
        path: of its file.
        text: what is said; None where nobody has written it down.
        split: the set that it belongs to.
        speaker: who speaks.
    """

    id: str
    path: Path
    text: str | None
    split: Split
    speaker: str


Transcribe = Callable[[Samples], str | None]
"""`[samples]` at 16 kHz to what is said; None where that is not sure."""
Hears = Callable[[Samples, str], bool]
"""Whether a text is what is said in `[samples]` at 16 kHz."""
Read = Callable[[Path], tuple[Samples, int]]
"""A file to `[samples]` and their rate in Hz; raises AudioError."""


def find_recordings(source: Path, columns: Columns, split: Split) -> list[Recorded]:
    """The recordings of a table or a folder.

    Args:
        source: a CSV file, or a folder: of its `metadata.csv`, else of all recordings in it, each
            with its text in a file of the same name that ends in `.txt`, if there is one. A table
            without a header whose lines are `id|text` or `id|text|spoken text`, as LJSpeech's, is
            understood too.
        columns: of the table.
        split: where no column says it.

    Raises:
        DataError: there is nothing, or a file or a column is missing.
    """
    if source.is_dir() and (source / "metadata.csv").is_file():
        source = source / "metadata.csv"
    found = _of_folder(source, split) if source.is_dir() else _of_table(source, columns, split)
    if not found:
        raise DataError(f"{source} has no recordings; these count: {', '.join(ENDINGS)}")
    for recorded_id, times in Counter(recorded.id for recorded in found).items():
        if times > 1:
            raise DataError(f"{source}: {recorded_id!r} stands there {times} times; give ids once")
    return sorted(found, key=lambda recorded: recorded.id)


def _of_folder(folder: Path, split: Split) -> list[Recorded]:
    found = []
    for path in folder.rglob("*"):
        if path.suffix.lower() in ENDINGS and path.is_file():
            name = path.relative_to(folder).with_suffix("").as_posix()
            # LibriSpeech and many others begin a file's name with the speaker.
            speaker = path.stem.partition("-")[0]
            found.append(Recorded(name.replace("/", "-"), path, _beside(path), split, speaker))
    return found


def _beside(recording: Path) -> str | None:
    """The text in the file beside a recording."""
    path = recording.with_suffix(".txt")
    if not path.is_file():
        return None
    try:
        return " ".join(path.read_text("utf-8-sig").split()) or None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in UTF-8: {error}") from error


def _of_table(path: Path, columns: Columns, split: Split) -> list[Recorded]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(_rows(file, columns))
    except FileNotFoundError:
        raise DataError(f"there is no file or folder {path}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no CSV file of UTF-8: {error}") from error
    if rows and columns.recording not in rows[0]:
        raise DataError(
            f"{path} has no column {columns.recording!r}; it has {', '.join(rows[0])}: "
            "say which one names the recording"
        )
    files = _files_near(path.parent)
    return [_of_row(row, path, columns, split, files) for row in rows]


def _rows(file: TextIO, columns: Columns) -> Iterator[dict[str, str]]:
    first = file.readline()
    file.seek(0)
    if "|" not in first or "," in first.partition("|")[0]:
        yield from csv.DictReader(file)
        return
    # LJSpeech's form: no header, nothing is quoted, and the second column is the text as written.
    headed = columns.recording in first.strip().split("|")
    names = None if headed else (columns.recording, columns.text)
    yield from csv.DictReader(file, names, delimiter="|", quoting=csv.QUOTE_NONE)


def _of_row(
    row: Mapping[str, str], table: Path, columns: Columns, split: Split, files: Mapping[str, Path]
) -> Recorded:
    name = row[columns.recording]
    path = table.parent / name
    if not path.is_file():
        known = files.get(Path(name).name)
        if known is None:
            raise DataError(
                f"{table}: there is no recording {name!r} in {table.parent} or below, with any of "
                f"the endings {', '.join(ENDINGS)}"
            )
        path = known
    stated = (row.get(columns.split) or split).strip().lower()
    stated = _SPLIT_NAMES.get(stated, stated)
    if stated not in SPLITS:
        raise DataError(
            f"{table}: {name!r} is in the split {stated!r}; it must be one of {', '.join(SPLITS)}"
        )
    speaker = row.get(columns.speaker) or ""
    text = " ".join((row.get(columns.text) or "").split())
    return Recorded(
        Path(name).stem if "/" in name or path.name == name else name,
        path,
        text or None,
        stated,
        speaker,
    )


def _files_near(folder: Path) -> dict[str, Path]:
    """Recordings below a folder by their names, with and without ending."""
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in ENDINGS:
            files[path.name] = files[path.stem] = path
    return files


class _LeftOutError(Exception):
    """A recording is of no use; the text says why."""


@dataclass(frozen=True)
class Import:
    """Recordings to bring into shards.

    Attributes:
        root: of the shards.
        name: of the data: the source of each clip, and the start of ids and speakers.
        recordings: all of them.
        transcribe: says what is said where it is not written down; None leaves such ones out.
        read: of a file.
        about: how they are transcribed, so that another way makes them again.
        rate_hz: of the shards.
        clean: whether to trim silence, bring all speakers to the same level, and leave out what is
            clipped, noisy or silent (`levels`).
        hears: says whether a recording that has a text says it; None believes every text.
    """

    root: Path
    name: str
    recordings: Sequence[Recorded]
    transcribe: Transcribe | None = None
    read: Read = read_file
    about: str = ""
    rate_hz: int = LISTENING_RATE_HZ
    clean: bool = False
    hears: Hears | None = None

    def run(self, told: Callable[[int, int], None]) -> list[Made]:
        """Writes the shards that are missing, and returns what those are made of.

        Args:
            told: hears how many recordings of how many are done.

        Raises:
            DataError: the folder holds something else, or another process writes there.
        """
        return write_missing(self.root, self.name, self.rate_hz, list(self._wanted()), told)

    def _wanted(self) -> Iterator[Wanted]:
        for split in SPLITS:
            chosen = [recorded for recorded in self.recordings if recorded.split == split]
            for number, start in enumerate(range(0, len(chosen), CLIPS)):
                part = chosen[start : start + CLIPS]
                digest, clips = self._digest(part), partial(map, self._clip, part)
                yield Wanted(f"{split}.{number:04d}", digest, len(part), clips)

    def _digest(self, recordings: Sequence[Recorded]) -> str:
        files = [(recorded.path.stat().st_size, recorded.text) for recorded in recordings]
        ids = [(recorded.id, recorded.speaker, recorded.split) for recorded in recordings]
        options: list[object] = []
        if self.clean:
            # How loud a speaker is depends on all that they say.
            options.append(("clean", [recorded.id for recorded in self.recordings]))
        if self.hears is not None:
            options.append("checked")
        return digest_of((self.name, self.about, *ids, *files, *options))

    def _clip(self, recorded: Recorded) -> Clip | str:
        try:
            samples, native_hz = self._sound(recorded)
            text, labels = self._text(recorded, samples, native_hz)
        except _LeftOutError as left_out:
            return str(left_out)
        if self.clean:
            samples = amplified(samples, self._gains_db[recorded.speaker])
        samples = resample(samples, native_hz, self.rate_hz)
        speaker = f"{self.name}-{recorded.speaker}" if recorded.speaker else self.name
        custom = {"kind": "sentence", "source": self.name}
        custom |= labels | band_of(native_hz, self.rate_hz)
        return Clip(f"{self.name}-{recorded.id}", samples, text, speaker, custom)

    def _sound(self, recorded: Recorded) -> tuple[Samples, int]:
        """`[samples]` of a recording and their rate in Hz."""
        try:
            samples, native_hz = self.read(recorded.path)
        except AudioError:
            raise _LeftOutError("cannot be read") from None
        if self.clean:
            if flaw := flaw_of(samples, native_hz):
                raise _LeftOutError(flaw)
            samples = trimmed(samples, native_hz)
        seconds = len(samples) / native_hz
        if seconds < _SHORTEST_SECONDS:
            raise _LeftOutError("too short")
        if seconds > _LONGEST_SECONDS:
            raise _LeftOutError("too long")
        return samples, native_hz

    def _text(
        self, recorded: Recorded, samples: Samples, native_hz: int
    ) -> tuple[str, dict[str, Any]]:
        """What is said, and what `custom` tells of where that comes from."""
        if recorded.text is not None:
            if self.hears and not self.hears(_heard(samples, native_hz), recorded.text):
                raise _LeftOutError("says something else")
            return recorded.text, {}
        if self.transcribe is None:
            raise _LeftOutError("no transcript")
        if text := self.transcribe(_heard(samples, native_hz)):
            return text, {"labels": self.about}
        raise _LeftOutError("transcripts disagree")

    @cached_property
    def _gains_db(self) -> dict[str, float]:
        """What brings each speaker to the usual level: one gain, so that accents stay."""
        by_speaker: dict[str, list[Recorded]] = {}
        for recorded in self.recordings:
            by_speaker.setdefault(recorded.speaker, []).append(recorded)
        return {
            speaker: SPEECH_DBFS - median(self._levels_dbfs(recordings))
            for speaker, recordings in by_speaker.items()
        }

    def _levels_dbfs(self, recordings: Sequence[Recorded]) -> list[float]:
        """Levels of a speaker's recordings, of some of them where there are many."""
        levels = []
        for recorded in recordings[:: 1 + len(recordings) // _MEASURED]:
            try:
                samples, native_hz = self.read(recorded.path)
            except AudioError:
                continue
            if not flaw_of(samples, native_hz):
                levels.append(speech_dbfs(samples, native_hz))
        return levels or [SPEECH_DBFS]


def _heard(samples: Samples, native_hz: int) -> Samples:
    """As recognisers hear it."""
    return resample(samples, native_hz, LISTENING_RATE_HZ)
