"""Shards of speech in lhotse's Shar format: a folder each, whole or not there at all.

    ROOT/train.0000/cuts.jsonl.gz, recording.tar     and so on: SET.NUMBER
    ROOT/.made/train.0000.json                       what it was made of

A cut has one supervision: the text as written, the speaker, and what else is known of it. Shar
readers take every file of a folder for a field, so what a shard was made of lies beside it. All
shards of a folder have one sample rate.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
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
        samples: `[samples]` at the rate of the shard.
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
        rate_hz: of the audio.
    """

    name: str
    digest: str
    clips: int
    seconds: float
    skipped: dict[str, int] = field(default_factory=dict)
    worked_seconds: float = 0.0
    rate_hz: int = LISTENING_RATE_HZ


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


def named_for(name: str, rate_hz: int) -> str:
    """The usual folder of data at a rate: `kathleen` at 16 kHz, else as in `kathleen-24k`."""
    return name if rate_hz == LISTENING_RATE_HZ else f"{name}-{rate_hz / 1000:g}k"


def band_of(native_hz: float, rate_hz: int) -> dict[str, float]:
    """What a clip's `custom` says of its band: nothing where it fills that of its rate.

    `bandwidth_hz` is half the lowest rate that the sound ever had: above it there is nothing, which
    is no way to speak, and no voice should learn it.
    """
    return {"bandwidth_hz": native_hz / 2} if native_hz < rate_hz else {}


def check_rate(root: Path, rate_hz: int) -> None:
    """Refuses a folder whose shards have another rate.

    Raises:
        DataError: they do.
    """
    for path in (root / MADE).glob("[!.]*.json"):
        made = made_of(root, path.stem)
        if made is not None and made.rate_hz != rate_hz:
            raise DataError(
                f"{root} holds speech at {made.rate_hz} Hz, not {rate_hz}; give another --out"
            )


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


@dataclass(frozen=True)
class Wanted:
    """A shard to be written.

    Attributes:
        shard: its name, as in `train.0000`.
        digest: of everything that decides what is in it.
        count: of what it is made of, what will be left out among them.
        clips: makes them one by one; gives the reason where one is left out.
    """

    shard: str
    digest: str
    count: int
    clips: Callable[[], Iterator[Clip | str]]


def write_missing(
    root: Path,
    name: str,
    rate_hz: int,
    wanted: Sequence[Wanted],
    told: Callable[[int, int], None],
) -> list[Made]:
    """Writes the shards that are missing; when it is interrupted, whole ones stay.

    Args:
        root: of all shards.
        name: of the data.
        rate_hz: of the clips.
        wanted: all shards.
        told: hears how many utterances of how many are done.

    Returns:
        What was made now.

    Raises:
        DataError: the folder holds something else, or another process writes there.
    """
    total = sum(one.count for one in wanted)
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        told(done, total)

    made = []
    with sole_writer(root):
        check_rate(root, rate_hz)
        for one in wanted:
            if is_made(root, one.shard, name, one.digest):
                done += one.count
                told(done, total)
            else:
                made.append(_write_wanted(root, name, rate_hz, one, step))
    return made


def _write_wanted(
    root: Path, name: str, rate_hz: int, wanted: Wanted, step: Callable[[], None]
) -> Made:
    began = time.monotonic()
    skipped: Counter[str] = Counter()

    def clips() -> Iterator[Clip]:
        for clip in wanted.clips():
            step()
            if isinstance(clip, str):
                skipped[clip] += 1
            else:
                yield clip

    def made(count: int, seconds: float) -> Made:
        worked = time.monotonic() - began
        return Made(name, wanted.digest, count, seconds, dict(skipped), worked)

    return write_shard(root, wanted.shard, clips(), made, rate_hz)


def write_shard(
    root: Path,
    shard: str,
    clips: Iterable[Clip],
    made: Callable[[int, float], Made],
    rate_hz: int = LISTENING_RATE_HZ,
) -> Made:
    """Writes a shard and what it was made of; nothing is there before it is whole.

    Args:
        root: of all shards.
        shard: its name, as in `train.0000`.
        clips: what is in it. Where there are none, no shard is left.
        made: says, given clips and seconds, what it was made of.
        rate_hz: of the clips.
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
                recording = Recording.from_bytes(_flac(clip.samples, rate_hz), clip.id)
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
        told = replace(made(count, seconds), rate_hz=rate_hz)
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


def _flac(samples: Samples, rate_hz: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, to_s16(samples), rate_hz, format="FLAC", subtype="PCM_16")
    return file.getvalue()
