"""Shards of speech in lhotse's Shar format: a folder each, whole or not there at all.

    ROOT/train.0000/cuts.jsonl.gz, recording.tar     and so on: SET.NUMBER
    ROOT/.made/train.0000.json                       what it was made of

A cut has one supervision: the text as written, the speaker, and what else is known of it. Shar
readers take every file of a folder for a field, so what a shard was made of lies beside it.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import soundfile
from filelock import FileLock, Timeout

from minmo.audio.pcm import Samples, to_s16
from minmo.audio.resample import LISTENING_RATE_HZ
from minmo.training.data.errors import DataError

CLIPS = 500
"""Utterances of a shard at most."""

MADE = ".made"
_UNFINISHED = ".unfinished-"


@dataclass(frozen=True)
class Clip:
    """One utterance with its audio.

    Attributes:
        id: of the cut.
        samples: `[samples]` at 16 kHz.
        text: as written.
        speaker: who speaks.
        custom: what else is known, as in `kind`, `source` and `answers`.
    """

    id: str
    samples: Samples
    text: str
    speaker: str
    custom: Mapping[str, Any]


@dataclass(frozen=True)
class Made:
    """What a shard was made of.

    Attributes:
        name: of the data, as in `libritts`.
        digest: of everything that decides what is in it.
        clips: in it.
        seconds: of audio.
        skipped: what was left out, by reason.
        worked_seconds: that it took.
    """

    name: str
    digest: str
    clips: int
    seconds: float
    skipped: dict[str, int] = field(default_factory=dict)
    worked_seconds: float = 0.0


def digest_of(parts: Iterable[object]) -> str:
    """A digest of what a shard is made of."""
    text = json.dumps([repr(part) for part in parts])
    return hashlib.sha256(text.encode()).hexdigest()


def made_of(root: Path, shard: str) -> Made | None:
    """What a shard was made of; None where it is not there."""
    if not (root / shard).is_dir():
        return None
    try:
        return Made(**json.loads((root / MADE / f"{shard}.json").read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def is_made(root: Path, shard: str, name: str, digest: str) -> bool:
    """Whether a shard is there and is what would be made.

    Raises:
        DataError: something else has that name.
    """
    made = made_of(root, shard)
    if made is None and (root / shard).exists():
        raise DataError(f"{root / shard} is there, but not from here; give another --out")
    if made is not None and made.name != name:
        raise DataError(f"{root} holds {made.name!r}, not {name!r}; give another --out")
    return made is not None and made.digest == digest


def write_shard(
    root: Path, shard: str, clips: Iterable[Clip], made: Callable[[int, float], Made]
) -> Made:
    """Writes a shard and what it was made of; nothing is there before it is whole.

    Args:
        root: of all shards.
        shard: its name, as in `train.0000`.
        clips: what is in it. Where there are none, no shard is left.
        made: says, given clips and seconds, what it was made of.
    """
    from lhotse import Recording, SupervisionSegment
    from lhotse.shar import SharWriter

    unfinished = root / f"{_UNFINISHED}{shard}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    count, seconds = 0, 0.0
    try:
        with SharWriter(str(unfinished), fields={"recording": "flac"}, shard_size=None) as writer:
            for clip in clips:
                recording = Recording.from_bytes(_flac(clip.samples), clip.id)
                cut = recording.to_cut()
                cut.id = clip.id
                cut.supervisions = [
                    SupervisionSegment(
                        id=clip.id,
                        recording_id=clip.id,
                        start=0,
                        duration=recording.duration,
                        text=clip.text,
                        language="en",
                        speaker=clip.speaker,
                        custom=dict(clip.custom),
                    )
                ]
                writer.write(cut)
                count += 1
                seconds += recording.duration
        told = made(count, seconds)
        # In this order a kill at any time leaves a shard that is known, or none.
        shutil.rmtree(root / shard, ignore_errors=True)
        _record(root, shard, told)
        if count:
            unfinished.rename(root / shard)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return told


def _record(root: Path, shard: str, made: Made) -> None:
    folder = root / MADE
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{_UNFINISHED}{shard}.json"
    unfinished.write_text(json.dumps(asdict(made)) + "\n", "utf-8")
    unfinished.rename(folder / f"{shard}.json")


@contextmanager
def sole_writer(root: Path) -> Iterator[None]:
    """Keeps other processes from writing there, and sweeps away what a killed one left.

    Raises:
        DataError: another one is writing, or the folder cannot be written.
    """
    try:
        (root / MADE).mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / MADE / "lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise DataError(f"another process is writing {root}; wait for it, or end it") from None
    except OSError as error:
        raise DataError(
            f"cannot write {root}: {error.strerror or error}; give another --out"
        ) from (error)
    try:
        for leftover in root.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield
    finally:
        lock.release()


def _flac(samples: Samples) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, to_s16(samples), LISTENING_RATE_HZ, format="FLAC", subtype="PCM_16")
    return file.getvalue()
