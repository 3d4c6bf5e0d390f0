"""Recordings, with transcripts or without, to shards like those of synthetic speech."""

from __future__ import annotations

import csv
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minmo.audio.pcm import AudioError, Samples, read_file
from minmo.audio.resample import LISTENING_RATE_HZ, resample
from minmo.training.data.errors import DataError
from minmo.training.data.lines import SPLITS, Split
from minmo.training.data.shards import (
    CLIPS,
    Clip,
    Made,
    digest_of,
    is_made,
    sole_writer,
    write_shard,
)

ENDINGS = (".wav", ".flac", ".ogg", ".opus", ".mp3")
_SPLIT_NAMES: Mapping[str, Split] = {"validation": "valid", "dev": "valid", "val": "valid"}
_SHORTEST_SECONDS, _LONGEST_SECONDS = 0.4, 30.0


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
Read = Callable[[Path], tuple[Samples, int]]
"""A file to `[samples]` and their rate in Hz; raises AudioError."""


def find_recordings(source: Path, columns: Columns, split: Split) -> list[Recorded]:
    """The recordings of a table or a folder.

    Args:
        source: a CSV file, or a folder: of its `metadata.csv`, else of all recordings in it.
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
            found.append(Recorded(name.replace("/", "-"), path, None, split, speaker))
    return found


def _of_table(path: Path, columns: Columns, split: Split) -> list[Recorded]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
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
    """

    root: Path
    name: str
    recordings: Sequence[Recorded]
    transcribe: Transcribe | None = None
    read: Read = read_file
    about: str = ""

    def run(self, told: Callable[[int, int], None]) -> list[Made]:
        """Writes the shards that are missing, and returns what all are made of.

        Args:
            told: hears how many recordings of how many are done.

        Raises:
            DataError: the folder holds something else, or another process writes there.
        """
        shards = dict(self._shards())
        made: list[Made] = []
        done = 0
        with sole_writer(self.root):
            for shard, recordings in shards.items():
                digest = self._digest(recordings)
                if is_made(self.root, shard, self.name, digest):
                    done += len(recordings)
                    told(done, len(self.recordings))
                    continue

                def step() -> None:
                    nonlocal done
                    done += 1
                    told(done, len(self.recordings))

                made.append(self._make(shard, recordings, digest, step))
        return made

    def _shards(self) -> Iterator[tuple[str, list[Recorded]]]:
        for split in SPLITS:
            chosen = [recorded for recorded in self.recordings if recorded.split == split]
            for number, start in enumerate(range(0, len(chosen), CLIPS)):
                yield f"{split}.{number:04d}", chosen[start : start + CLIPS]

    def _digest(self, recordings: Sequence[Recorded]) -> str:
        files = [(recorded.path.stat().st_size, recorded.text) for recorded in recordings]
        ids = [(recorded.id, recorded.speaker, recorded.split) for recorded in recordings]
        return digest_of((self.name, self.about, *ids, *files))

    def _make(
        self, shard: str, recordings: Sequence[Recorded], digest: str, step: Callable[[], None]
    ) -> Made:
        began = time.monotonic()
        skipped: Counter[str] = Counter()

        def clips() -> Iterator[Clip]:
            for recorded in recordings:
                clip, reason = self._clip(recorded)
                skipped.update([reason] if reason else [])
                step()
                if clip:
                    yield clip

        def made(count: int, seconds: float) -> Made:
            worked = time.monotonic() - began
            return Made(self.name, digest, count, seconds, dict(skipped), worked)

        return write_shard(self.root, shard, clips(), made)

    def _clip(self, recorded: Recorded) -> tuple[Clip | None, str]:
        try:
            samples, rate_hz = self.read(recorded.path)
        except AudioError:
            return None, "cannot be read"
        seconds = len(samples) / rate_hz
        if seconds < _SHORTEST_SECONDS:
            return None, "too short"
        if seconds > _LONGEST_SECONDS:
            return None, "too long"
        samples = resample(samples, rate_hz, LISTENING_RATE_HZ)
        text, custom = recorded.text, self._custom(recorded)
        if text is None:
            if self.transcribe is None:
                return None, "no transcript"
            text = self.transcribe(samples)
            custom["labels"] = self.about
        if not text:
            return None, "transcripts disagree"
        speaker = f"{self.name}-{recorded.speaker}" if recorded.speaker else self.name
        return Clip(f"{self.name}-{recorded.id}", samples, text, speaker, custom), ""

    def _custom(self, recorded: Recorded) -> dict[str, Any]:
        return {"kind": "sentence", "source": self.name}
