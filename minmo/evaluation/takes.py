"""What systems said, kept with what it cost, and what judges make of it.

Audio is kept beside the results, so that another judge hears it later without its being made again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import numpy as np

from minmo.audio.pcm import Samples, read_file, write_file
from minmo.audio.resample import LISTENING_RATE_HZ, resample
from minmo.evaluation.clips import Clip
from minmo.evaluation.judges import Judge, Judgement
from minmo.evaluation.results import Results
from minmo.evaluation.speaking import Spoken

_SPOKEN, _AUDIO = "spoken.jsonl", "audio"
_PERCENTILE = 99.9


class Takes:
    """What one system said of a set of texts; use it as a context manager.

    Args:
        folder: of its audio and results.
        made_with: what they depend on.

    Raises:
        EvaluationError: the folder's results were made with something else.
    """

    def __init__(self, folder: Path, made_with: Mapping[str, Any]) -> None:
        self._folder, self._made_with = folder, dict(made_with)
        (folder / _AUDIO).mkdir(parents=True, exist_ok=True)
        self._rows = Results(folder / _SPOKEN, made_with)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._rows.__exit__(*error)

    def __contains__(self, key: str) -> bool:
        return key in self._rows and (not self[key]["seconds"] or self._path(key).is_file())

    def __getitem__(self, key: str) -> dict[str, Any]:
        """`seconds`, `compute_s`, `first_audio_s`, `borders`, `border_step` of a take."""
        return self._rows[key]

    def add(self, key: str, spoken: Spoken, **more: Any) -> None:
        """Keeps a take, and whatever else is known of it."""
        if len(spoken.samples):
            write_file(self._path(key), spoken.samples, spoken.rate_hz)
        self._rows.add(
            key,
            seconds=len(spoken.samples) / spoken.rate_hz,
            compute_s=_rounded(spoken.compute_s),
            first_audio_s=_rounded(spoken.first_audio_s),
            borders=len(spoken.borders),
            border_step=_rounded(border_step(spoken.samples, spoken.borders)),
            **more,
        )

    def audio(self, key: str) -> tuple[Samples, int]:
        """`[samples]` of a take and their rate; none if nothing was said.

        Raises:
            AudioError: its file is damaged.
        """
        if not self[key]["seconds"]:
            return np.zeros(0, np.float32), LISTENING_RATE_HZ
        return read_file(self._path(key))

    def judged(self, judge: Judge, clips: Sequence[Clip]) -> Iterator[tuple[Clip, Judgement]]:
        """A judge's opinion of the take of each clip; what was judged earlier is not heard again.

        Raises:
            EvaluationError: the folder holds what another version of this judge said.
        """
        path = self._folder / f"{judge.name.replace(' ', '-')}.jsonl"
        with Results(path, self._made_with | dict(judge.made_with)) as results:
            for clip in clips:
                if clip.id not in results:
                    samples, rate = self.audio(clip.id)
                    heard = resample(samples, rate, LISTENING_RATE_HZ)
                    results.add(clip.id, value=judge.judge(clip, heard))
                yield clip, results[clip.id]["value"]

    def _path(self, key: str) -> Path:
        return self._folder / _AUDIO / f"{quote(key, safe='')}.flac"


def border_step(samples: Samples, borders: Sequence[int]) -> float | None:
    """The largest step between two samples at a border of chunks, over what is usual inside them.

    Args:
        samples: `[samples]`.
        borders: the first sample of each chunk but the first.

    Returns:
        The largest step over the 99.9th percentile of the others: above 1 a click may be heard.
        None without borders, or where nothing sounds.
    """
    if not borders:
        return None
    steps = np.abs(np.diff(samples.astype(np.float64)))
    places = np.asarray(borders) - 1
    usual = np.percentile(np.delete(steps, places), _PERCENTILE)
    return float(steps[places].max() / usual) if usual else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)
