"""Clips said again as somebody asks for it, slowly or louder, made of those as they are.

Who says a text twice, once as usual and once as asked, shows what the instruction changes and
nothing else. Synthetic voices can be asked right away (`styles.with_styles`); this is for
recordings.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from minmo.training.data.errors import DataError
from minmo.training.data.lines import SPLITS, Instructed, Split
from minmo.training.data.restyling import pitch_factor, restyle
from minmo.training.data.shards import (
    CLIPS,
    Clip,
    Made,
    Wanted,
    band_of,
    digest_of,
    made_of,
    write_missing,
)
from minmo.training.data.styles import drawn_styles, instruct
from minmo.training.errors import TrainingError
from minmo.training.shar import Clip as Stored
from minmo.training.shar import read_audio, read_set

_LONGEST_SECONDS = 30.0
_OF_THE_SOUND = frozenset({"bandwidth_hz", "words"})
"""What is known of a clip and does not hold for it in another style."""


@dataclass(frozen=True)
class _Asked:
    """A clip, and what is asked of its speaker."""

    clip: Stored
    name: str
    instructed: Instructed


@dataclass(frozen=True)
class Restyling:
    """Clips to be said again in other styles.

    Attributes:
        root: of the new shards.
        name: of the data.
        folders: of shards with the clips as they are.
        times: how often each clip is said again, each time in another style; the fraction is a
            chance.
        rate_hz: of the new shards.
        seed: of what is drawn.
    """

    root: Path
    name: str
    folders: Sequence[Path]
    times: float
    rate_hz: int
    seed: int = 0

    def run(self, told: Callable[[int, int], None]) -> list[Made]:
        """Writes the shards that are missing, and returns what those are made of.

        Args:
            told: hears how many clips of how many are done.

        Raises:
            DataError: there are no clips, the folder holds something else, or another process
                writes there.
        """
        if self.root.resolve() in {folder.resolve() for folder in self.folders}:
            raise DataError(f"{self.root} holds the clips as they are; give another --out")
        try:
            wanted = [one for split in SPLITS for one in self._wanted(split)]
            if not wanted:
                raise DataError(
                    f"there is nothing to say again in {', '.join(map(str, self.folders))}: no "
                    f"clips with texts in sets called {', '.join(SPLITS)}, or --times is too low"
                )
            return write_missing(self.root, self.name, self.rate_hz, wanted, told)
        except TrainingError as error:
            raise DataError(str(error)) from error

    def _wanted(self, split: Split) -> Iterator[Wanted]:
        asked = list(self._asked(split))
        for number, start in enumerate(range(0, len(asked), CLIPS)):
            part = asked[start : start + CLIPS]
            told = [(one.clip.id, one.clip.size, one.instructed) for one in part]
            digest = digest_of((self.name, *told))
            yield Wanted(f"{split}.{number:04d}", digest, len(part), partial(map, self._clip, part))

    def _asked(self, split: Split) -> Iterator[_Asked]:
        for folder in self.folders:
            for clip in read_set(folder, split):
                if not clip.text or "instruct" in clip.custom:
                    continue
                drawn = random.Random(f"{self.seed} styles {clip.id}")
                for name in drawn_styles(self.times, drawn):
                    yield _Asked(clip, name, instruct(name, clip.text, split, drawn))

    def _clip(self, asked: _Asked) -> Clip | str:
        clip, style = asked.clip, asked.instructed.style
        if clip.seconds / style.rate > _LONGEST_SECONDS:
            return "too long"
        samples = restyle(read_audio(clip, self.rate_hz), self.rate_hz, style)
        native_hz = min(_native_hz(clip), self.rate_hz) * pitch_factor(style)
        custom = {key: value for key, value in clip.custom.items() if key not in _OF_THE_SOUND}
        custom |= asked.instructed.custom | band_of(native_hz, self.rate_hz)
        return Clip(f"{clip.id}-{asked.name}", samples, clip.text, clip.speaker, custom)


def _native_hz(clip: Stored) -> float:
    """Twice the highest frequency that a clip may have."""
    if "bandwidth_hz" in clip.custom:
        return 2 * float(clip.custom["bandwidth_hz"])
    shard = Path(clip.archive).parent
    made = made_of(shard.parent, shard.name)
    return made.rate_hz if made else math.inf
