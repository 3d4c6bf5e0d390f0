"""The same words, said differently: recordings of one text, or one recording changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from minmo.audio.pcm import Samples
from minmo.audio.resample import LISTENING_RATE_HZ, resample
from minmo.evaluation.clips import Clip, ClipSet
from minmo.evaluation.normalise import normalise

_FASTER = 1.1
_QUIETER_DB = -12.0


@dataclass(frozen=True)
class Pair:
    """Two recordings of the same words.

    Attributes:
        id: unique within the set.
        kind: how they differ.
        clip: what is known of the first.
        first: `[samples]` at 16 kHz.
        second: `[samples]` at 16 kHz.
    """

    id: str
    kind: str
    clip: Clip
    first: Samples
    second: Samples


def faster(samples: Samples) -> Samples:
    """The recording a tenth faster, and higher."""
    return resample(samples, round(LISTENING_RATE_HZ * _FASTER), LISTENING_RATE_HZ)


def quieter(samples: Samples) -> Samples:
    """The recording 12 dB quieter."""
    return (samples * np.float32(10 ** (_QUIETER_DB / 20))).astype(np.float32)


_CHANGES: dict[str, Callable[[Samples], Samples]] = {"faster": faster, "quieter": quieter}
SPOKEN_AGAIN = "spoken again"
KINDS = (SPOKEN_AGAIN, *_CHANGES)


def pair_ids(one: ClipSet, count: int) -> list[str]:
    """The names of a set's pairs, at most `count` of each kind: `<kind>/<clip>`."""
    again = [second for _, second in _spoken_again(one)][:count]
    changed = [f"{kind}/{clip.id}" for clip in one.clips[:count] for kind in _CHANGES]
    return [f"{SPOKEN_AGAIN}/{clip.id}" for clip in again] + changed


def pairs(one: ClipSet, wanted: frozenset[str]) -> Iterator[Pair]:
    """The pairs of a set with these names."""
    spoken = [
        (first, second)
        for first, second in _spoken_again(one)
        if f"{SPOKEN_AGAIN}/{second.id}" in wanted
    ]
    changed = {clip.id for clip in one.clips if any(f"{k}/{clip.id}" in wanted for k in _CHANGES)}
    needed = {clip.id for both in spoken for clip in both}
    kept: dict[str, Samples] = {}
    for clip, samples in one.read(frozenset(changed | needed)):
        if clip.id in needed:
            kept[clip.id] = samples
        for kind, change in _CHANGES.items():
            if f"{kind}/{clip.id}" in wanted:
                yield Pair(f"{kind}/{clip.id}", kind, clip, samples, change(samples))
    for first, second in spoken:
        name = f"{SPOKEN_AGAIN}/{second.id}"
        yield Pair(name, SPOKEN_AGAIN, first, kept[first.id], kept[second.id])


def _spoken_again(one: ClipSet) -> list[tuple[Clip, Clip]]:
    """Clips of a text that was spoken before, each with the first one that spoke it."""
    first: dict[str, Clip] = {}
    found = []
    for clip in one.clips:
        before = first.setdefault(normalise(clip.text), clip)
        if before is not clip:
            found.append((before, clip))
    return found
