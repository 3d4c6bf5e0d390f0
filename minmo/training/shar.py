"""Reading folders of lhotse's Shar format: cuts in memory, audio from the archives when needed.

Any clip can be read at any time, so the order of clips is free and a run can go on anywhere; what
is kept of a clip until then is its text and where its audio lies.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from minmo.training.errors import TrainingError

SAMPLE_RATE = 16_000
SCENE = "scene"
"""Field of `custom` of what has no audio of its own (`minmo.training.data.duplex_scenes`)."""
_SUFFIXES = (".flac", ".wav", ".opus", ".ogg")


@dataclass(frozen=True, slots=True)
class Clip:
    """A stretch of speech and what is said in it.

    Attributes:
        id: of the cut.
        text: as written: case, punctuation, digits.
        speaker: their name, or empty.
        seconds: of audio.
        custom: the supervision's own fields: kind, source, answers.
        archive: the tar file with the audio.
        offset: bytes at which the audio's file begins in it.
        size: bytes of the audio's file.
    """

    id: str
    text: str
    speaker: str
    seconds: float
    archive: str
    offset: int
    size: int
    custom: Mapping[str, Any] = field(default_factory=dict)


def read_set(root: Path, name: str) -> list[Clip]:
    """The clips of a set: of all folders `<root>/<name>.<number>`, in the order of the numbers.

    Args:
        root: folder of the shards' folders.
        name: of the set: train, valid, test.

    Returns:
        None at all where the folder lacks the set.

    Raises:
        TrainingError: there is no such folder, or a shard is damaged.
    """
    return [clip for folder in shard_folders(root, name) for clip in read_shard(folder)]


def shard_folders(root: Path, name: str) -> list[Path]:
    """The folders of a set's shards, in the order of their numbers.

    Raises:
        TrainingError: there is no such folder.
    """
    if not root.is_dir():
        raise TrainingError(f"there is no folder {root}: --data takes folders of spoken clips")
    pattern = re.compile(rf"{re.escape(name)}\.(\d+)")
    numbered = [
        (int(found[1]), folder)
        for folder in root.iterdir()
        if (found := pattern.fullmatch(folder.name)) and folder.is_dir()
    ]
    return [folder for _, folder in sorted(numbered)]


def read_shard(folder: Path) -> Iterator[Clip]:
    """The clips of one Shar folder.

    Raises:
        TrainingError: it is damaged.
    """
    for cuts in sorted(folder.glob("cuts*.jsonl.gz")):
        part = cuts.name.removeprefix("cuts").removesuffix(".jsonl.gz")
        archive = folder / f"recording{part}.tar"
        try:
            places = _places(archive) if archive.exists() else {}
            with gzip.open(cuts, "rt", encoding="utf-8") as lines:
                for line in lines:
                    yield _clip(json.loads(line), archive, places)
        except (OSError, EOFError, tarfile.TarError, ValueError, KeyError, IndexError) as error:
            raise TrainingError(
                f"{cuts} or {archive.name} is damaged ({type(error).__name__}: {error}); "
                f"delete {folder} and make it again"
            ) from error


def read_audio(clip: Clip, rate_hz: int = SAMPLE_RATE) -> npt.NDArray[np.float32]:
    """A clip's audio, `[samples]`, at a rate, resampled where it has another one.

    Raises:
        TrainingError: it is damaged.
    """
    try:
        with Path(clip.archive).open("rb") as file:
            file.seek(clip.offset)
            content = file.read(clip.size)
        samples, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    except (OSError, soundfile.LibsndfileError) as error:
        raise TrainingError(
            f"clip {clip.id} in {clip.archive} cannot be read ({error}); delete the folder of its "
            "shard and make it again"
        ) from error
    mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(1)
    if rate != rate_hz:
        mono = soxr.resample(mono, rate, rate_hz)
    return np.ascontiguousarray(mono, dtype=np.float32)


def _places(archive: Path) -> dict[str, tuple[int, int]]:
    """Offset and size of each clip's audio in an archive, by the clip's id."""
    places = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            stem, dot, suffix = member.name.rpartition(".")
            if dot + suffix in _SUFFIXES:
                places[stem] = (member.offset_data, member.size)
    return places


def _clip(cut: Mapping[str, Any], archive: Path, places: Mapping[str, tuple[int, int]]) -> Clip:
    said = cut["supervisions"][0]
    custom = said.get("custom") or {}
    # A scene is mixed of other clips when it is heard.
    offset, size = (0, 0) if SCENE in custom else places[cut["id"]]
    return Clip(
        cut["id"],
        said.get("text") or "",
        said.get("speaker") or "",
        float(cut["duration"]),
        str(archive),
        offset,
        size,
        custom,
    )
