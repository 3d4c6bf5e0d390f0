"""What a voice is to learn from: recordings of one person with their texts, looked at first."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import soundfile

from minmo.training.data.errors import DataError
from minmo.training.data.recordings import Columns, Import, Recorded, find_recordings
from minmo.training.data.summary import summarise
from minmo.training.errors import TrainingError

LEAST_MINUTES, ENOUGH_MINUTES = 3.0, 20.0
"""With fewer nothing is learned; with so many most of a voice is."""

_LEAST_HZ = 16_000
_VALID_SHARE, _LEAST_VALID = 0.05, 2
_MOST_LEFT_OUT = 0.5
_LISTED = 8


@dataclass(frozen=True)
class VoiceRecordings:
    """Recordings of one speaker.

    Attributes:
        source: where they come from, for messages.
        recorded: those with a text.
        minutes: of train, as they were recorded.
        lowest_hz: rate of the recording with the lowest.
    """

    source: Path
    recorded: Sequence[Recorded]
    minutes: float
    lowest_hz: int

    @classmethod
    def find(cls, source: Path) -> VoiceRecordings:
        """Finds recordings and looks at their files' headers.

        Args:
            source: a folder or a table, as `find_recordings` takes them.

        Raises:
            TrainingError: there are no texts, several speakers, too few minutes, or a rate too low.
            DataError: there are no recordings, or the table cannot be used.
        """
        found = find_recordings(source, Columns(), "train")
        texts = [one for one in found if one.text]
        if not texts:
            raise TrainingError(
                f"the {len(found)} recordings of {source} have no texts, and a voice learns from "
                "both: put a metadata.csv there with lines `id|text`, or a .txt beside each"
            )
        recorded = _held_out(_of_one_speaker(source, texts))
        infos = [(one, info) for one in recorded if (info := _info(one.path))]
        if not infos:
            raise TrainingError(f"none of the recordings of {source} can be read as audio")
        lowest_hz = min(info.samplerate for _, info in infos)
        if lowest_hz < _LEAST_HZ:
            low = next(one.path for one, info in infos if info.samplerate == lowest_hz)
            raise TrainingError(
                f"{low} is at {lowest_hz} Hz; a voice needs {_LEAST_HZ} at least, and 24000 to "
                "sound clear: leave such recordings out, or record again"
            )
        minutes = sum(info.duration for one, info in infos if one.split == "train") / 60
        if minutes < LEAST_MINUTES:
            raise TrainingError(_too_few(source, minutes))
        return cls(source, recorded, minutes, lowest_hz)

    def bring(self, root: Path, name: str, rate_hz: int, told: Callable[[int, int], None]) -> None:
        """Brings them into shards, cleaned; what was brought before stays.

        Args:
            root: of the shards.
            name: of the speaker.
            rate_hz: of the shards.
            told: hears how many of how many are done.

        Raises:
            TrainingError: most are of no use, or what is left is too little.
            DataError: the folder holds something else.
        """
        made = Import(root, name, self.recorded, rate_hz=rate_hz, clean=True).run(told)
        left_out: Counter[str] = Counter()
        seconds = 0.0
        try:
            summary = summarise(root)
        except DataError:
            # Nothing was left of any shard.
            for one in made:
                left_out.update(one.skipped)
        else:
            left_out.update(summary.skipped)
            seconds = sum(one.seconds for one in summary.totals() if one.split == "train")
        if left_out.total() > _MOST_LEFT_OUT * len(self.recorded):
            reasons = ", ".join(f"{times} {reason}" for reason, times in left_out.most_common())
            raise TrainingError(
                f"{left_out.total()} of the {len(self.recorded)} recordings of {self.source} are "
                f"of no use: {reasons}; record with less gain where they are clipped, nearer to "
                "the microphone where they are noisy, in sentences of 1 to 15 seconds"
            )
        if seconds < 60 * LEAST_MINUTES:
            raise TrainingError(_too_few(self.source, seconds / 60))


def _of_one_speaker(source: Path, found: Sequence[Recorded]) -> list[Recorded]:
    """Recordings whose speaker needs no name; without a table all are taken for one person's."""
    has_table = source.is_file() or (source / "metadata.csv").is_file()
    speakers = sorted({one.speaker for one in found}) if has_table else [""]
    if len(speakers) > 1:
        listed = ", ".join(repr(speaker) for speaker in speakers[:_LISTED])
        raise TrainingError(
            f"{source} has {len(speakers)} speakers ({listed}); a voice is of one: give a table "
            "with the rows of that one"
        )
    return [replace(one, speaker="") for one in found]


def _held_out(found: Sequence[Recorded]) -> list[Recorded]:
    """Holds a few texts out to measure on, where no table says which."""
    if any(one.split == "valid" for one in found):
        return list(found)
    texts = {one.text or "" for one in found if one.split == "train"}
    ordered = sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())
    count = max(_LEAST_VALID, round(_VALID_SHARE * len(ordered)))
    held = set(ordered[:count])
    return [
        replace(one, split="valid") if one.split == "train" and one.text in held else one
        for one in found
    ]


def _info(path: Path) -> soundfile._SoundFileInfo | None:
    try:
        return soundfile.info(path)
    except (soundfile.SoundFileError, OSError):
        return None


def _too_few(source: Path, minutes: float) -> str:
    return (
        f"{source} has {minutes:.1f} minutes of speech to learn from; {LEAST_MINUTES:g} are the "
        f"least, and {ENOUGH_MINUTES:g} or more make a good voice"
    )
