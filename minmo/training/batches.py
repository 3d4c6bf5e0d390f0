"""Batches of clips: an endless, shuffled order that can go on anywhere, and the audio for it.

The order follows from the seed and the clips alone. Clips are drawn from the folders by their
weights, each folder's in an order of its own that is drawn anew each time it has gone round; those
of a few dozen batches are sorted by length and cut into batches of so many seconds, whose order is
shuffled. Decoding and augmentation happen in worker processes, a few batches ahead.
"""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from minmo.audio.resample import LISTENING_RATE_HZ
from minmo.training.augmentation import (
    Samples,
    augment,
    change_speed,
    draw_speed,
    generator,
)
from minmo.training.config import AugmentationConfig, DataConfig
from minmo.training.errors import TrainingError
from minmo.training.shar import Clip, read_audio, read_set
from minmo.training.words import Spans, moved

_AHEAD = 4
_NICENESS = 5
# What each generator of the order is for; a clip's own have other keys.
_DRAWING, _SHUFFLING = 1, 2
_SILENCE, _SPEED, _SOUND = 1, 2, 3


@dataclass(frozen=True)
class Source:
    """A folder's clips.

    Attributes:
        clips: in a fixed order.
        weight: share of clips that come from it, beside the others' weights.
    """

    clips: Sequence[Clip]
    weight: float


@dataclass(frozen=True)
class Position:
    """Where in the order a run is: the next batch.

    Attributes:
        pool: number of the batches' pool.
        batch: in the pool.
        cursors: epoch and place of each source, where the pool begins.
    """

    pool: int
    batch: int
    cursors: tuple[tuple[int, int], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"pool": self.pool, "batch": self.batch, "cursors": [list(c) for c in self.cursors]}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Position:
        """From what `to_json` gave."""
        cursors = tuple((int(epoch), int(place)) for epoch, place in content["cursors"])
        return cls(int(content["pool"]), int(content["batch"]), cursors)


@dataclass(frozen=True)
class Planned:
    """A batch before its audio is read.

    Attributes:
        clips: of it, each with the epoch that it is heard in.
        next: position behind it.
    """

    clips: tuple[tuple[Clip, int], ...]
    next: Position


@dataclass(frozen=True)
class Batch:
    """Clips, padded to the longest.

    Attributes:
        samples: `[batch, samples]`, float32, zeros behind each clip; none where the configuration
            says that clips are not heard.
        lengths: `[batch]`, samples of each clip, the silence around it among them.
        clean: `[batch, samples]`, the same at the same times before noise and rooms; None unless
            asked for.
        texts: what is said.
        clips: with everything else that is known of them.
        words: where each word of a clip is heard, silence and speed included; None where the clip
            does not say.
        next: position in the order behind this batch.
        sample_rate: of the samples, Hz.
    """

    samples: Tensor
    lengths: Tensor
    clean: Tensor | None
    texts: tuple[str, ...]
    clips: tuple[Clip, ...]
    words: tuple[Spans | None, ...] = ()
    next: Position | None = None
    sample_rate: int = LISTENING_RATE_HZ

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on a device."""
        return replace(
            self,
            samples=self.samples.to(device),
            lengths=self.lengths.to(device),
            clean=None if self.clean is None else self.clean.to(device),
        )

    @property
    def seconds(self) -> float:
        """Of audio, without padding."""
        return float(self.lengths.sum()) / self.sample_rate


class Order:
    """The endless order of batches.

    Args:
        sources: of clips.
        config: of the data.
        seed: of everything that is drawn.
        ranks: processes that train together, each on batches of its own.
    """

    def __init__(
        self, sources: Sequence[Source], config: DataConfig, seed: int, ranks: int = 1
    ) -> None:
        self._sources = [replace(one, clips=fitting(one.clips, config)) for one in sources]
        for source in self._sources:
            if not source.clips:
                raise TrainingError(
                    f"no clip is from data.shortest={config.shortest:g} to "
                    f"data.longest={config.longest:g} seconds long and has text"
                )
        weights = np.array([one.weight for one in sources])
        self._shares = np.cumsum(weights / weights.sum())
        self._config, self._seed, self._ranks = config, seed, ranks
        self._permutations: dict[int, tuple[int, npt.NDArray[np.int64]]] = {}

    @property
    def start(self) -> Position:
        """Where a run begins."""
        return Position(0, 0, ((0, 0),) * len(self._sources))

    @property
    def fingerprint(self) -> str:
        """Of the clips: a position means something for the same ones only."""
        digest = hashlib.sha256()
        for source in self._sources:
            digest.update(f"{len(source.clips)} {source.weight:g}\n".encode())
            for clip in source.clips:
                digest.update(f"{clip.id} {clip.seconds:g}\n".encode())
        return digest.hexdigest()[:16]

    def after_a_change(self, position: Position) -> Position:
        """Where a run goes on whose clips are others now: a new pool, every source shuffled."""
        epoch = 1 + max((epoch for epoch, _ in position.cursors), default=0)
        return Position(position.pool + 1, 0, ((epoch, 0),) * len(self._sources))

    def plan(self, position: Position, rank: int = 0) -> Iterator[Planned]:
        """This process's batches from a position on, for ever."""
        while True:
            batches, cursors = self._pool(position.pool, position.cursors)
            for start in range(position.batch, len(batches), self._ranks):
                end = start + self._ranks
                following = replace(position, batch=end)
                if end >= len(batches):
                    following = Position(position.pool + 1, 0, cursors)
                yield Planned(tuple(batches[start + rank]), following)
            position = Position(position.pool + 1, 0, cursors)

    def _pool(
        self, number: int, cursors: tuple[tuple[int, int], ...]
    ) -> tuple[list[list[tuple[Clip, int]]], tuple[tuple[int, int], ...]]:
        config, moved = self._config, list(cursors)
        random = np.random.default_rng([self._seed, _DRAWING, number])
        drawn: list[tuple[Clip, int]] = []
        room = config.pool * self._ranks * config.seconds
        while room > 0:
            source = int(np.searchsorted(self._shares, random.random(), side="right"))
            source = min(source, len(moved) - 1)
            epoch, place = moved[source]
            clips = self._sources[source].clips
            clip = clips[int(self._permutation(source, epoch, len(clips))[place])]
            moved[source] = (epoch, place + 1) if place + 1 < len(clips) else (epoch + 1, 0)
            drawn.append((clip, epoch))
            room -= self._seconds(clip)
        # Nearly alike lengths are mixed, or the same clips would always meet.
        jitter = random.uniform(1.0, 1.1, len(drawn))
        order = np.argsort([clip.seconds for clip, _ in drawn] * jitter, kind="stable")
        batches = self._cut([drawn[index] for index in order[::-1]])
        # Every process gets as many batches of a pool as the others.
        while len(batches) % self._ranks:
            batches.append(batches[len(batches) % self._ranks - 1])
        return [batches[index] for index in random.permutation(len(batches))], tuple(moved)

    def _cut(self, clips: Sequence[tuple[Clip, int]]) -> list[list[tuple[Clip, int]]]:
        """Clips, the longest first, to batches of so many seconds with their padding."""
        batches: list[list[tuple[Clip, int]]] = []
        longest = 0.0
        for clip, epoch in clips:
            longest = max(longest, self._seconds(clip))
            if not batches or (len(batches[-1]) + 1) * longest > self._config.seconds:
                batches.append([])
                longest = self._seconds(clip)
            batches[-1].append((clip, epoch))
        return batches

    def _seconds(self, clip: Clip) -> float:
        return clip.seconds + sum(self._config.silence)

    def _permutation(self, source: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
        kept = self._permutations.get(source)
        if kept is None or kept[0] != epoch:
            random = np.random.default_rng([self._seed, _SHUFFLING, source, epoch])
            kept = epoch, random.permutation(count)
            self._permutations[source] = kept
        return kept[1]


def fitting(clips: Sequence[Clip], config: DataConfig) -> list[Clip]:
    """The clips with text whose length is within the configuration's limits."""
    return [
        clip for clip in clips if clip.text and config.shortest <= clip.seconds <= config.longest
    ]


def read_sources(config: DataConfig) -> list[Source]:
    """What to learn from: every set of `train` in every folder that has it.

    Raises:
        TrainingError: there are no folders, or none of them has one of the sets.
    """
    sources = []
    for name, share in config.train.items():
        found = [
            Source(clips, weight * share)
            for folder, weight in _folders(config).items()
            if (clips := read_set(Path(folder).expanduser(), name))
        ]
        if not found:
            raise _no_set(config, name)
        sources += found
    return sources


def read_valid(config: DataConfig) -> list[Clip]:
    """What to measure on: clips of `valid`, as many from each folder that has it.

    Raises:
        TrainingError: there are no folders, or none of them has it.
    """
    found = [
        fitting(clips, config)
        for folder in _folders(config)
        if (clips := read_set(Path(folder).expanduser(), config.valid))
    ]
    if not any(found):
        raise _no_set(config, config.valid)
    each = max(1, config.valid_clips // len(found))
    return [clip for clips in found for clip in clips[:each]]


def _folders(config: DataConfig) -> Mapping[str, float]:
    if not config.folders:
        raise TrainingError("no data: give folders with --data, such as --data FOLDER")
    return config.folders


def _no_set(config: DataConfig, name: str) -> TrainingError:
    return TrainingError(
        f"no clips of the set {name!r} in {', '.join(config.folders)}: expected folders "
        f"{name}.0000 and so on, each with cuts.jsonl.gz and recording.tar (lhotse's Shar format)"
    )


def assemble(
    planned: Planned,
    config: DataConfig,
    augmentation: AugmentationConfig | None,
    seed: int,
    *,
    clean: bool = False,
) -> Batch:
    """Reads a batch's audio, with silence around it, and changes it.

    Args:
        planned: its clips.
        config: of the data.
        augmentation: None to leave the clips as they are.
        seed: of everything that is drawn.
        clean: whether to keep what the clips were before noise and rooms.

    Raises:
        TrainingError: a clip cannot be read.
    """
    if not config.audio:
        return _unheard(planned, config.sample_rate)
    sounds = []
    rate = config.sample_rate
    words: list[Spans | None] = []
    for clip, epoch in planned.clips:
        sound, speed = read_audio(clip, rate), 1.0
        if augmentation is not None:
            speed = draw_speed(augmentation, generator(seed, epoch, clip.id, _SPEED))
            sound = change_speed(sound, speed) if speed != 1 else sound
        random = generator(seed, epoch, clip.id, _SILENCE)
        around = (random.uniform(*config.silence, 2) * rate).astype(np.int64)
        sounds.append(np.pad(sound, (int(around[0]), int(around[1]))))
        spans = clip.custom.get("words")
        words.append(moved(spans, speed, int(around[0]) / rate) if spans else None)
    changed = sounds
    if augmentation is not None:
        changed = [
            augment(
                sound,
                augmentation,
                generator(seed, epoch, clip.id, _SOUND),
                sounds[:number] + sounds[number + 1 :],
            )
            for number, (sound, (clip, epoch)) in enumerate(zip(sounds, planned.clips, strict=True))
        ]
    clips = tuple(clip for clip, _ in planned.clips)
    return Batch(
        _padded(changed),
        torch.tensor([len(sound) for sound in changed]),
        _padded(sounds) if clean else None,
        tuple(clip.text for clip in clips),
        clips,
        tuple(words),
        planned.next,
        rate,
    )


def _unheard(planned: Planned, rate: int) -> Batch:
    """A batch whose clips are known and not read; their lengths are those of their audio."""
    clips = tuple(clip for clip, _ in planned.clips)
    return Batch(
        torch.zeros(len(clips), 0),
        torch.tensor([round(clip.seconds * rate) for clip in clips]),
        None,
        tuple(clip.text for clip in clips),
        clips,
        next=planned.next,
        sample_rate=rate,
    )


def stream(
    order: Order,
    position: Position,
    config: DataConfig,
    augmentation: AugmentationConfig | None,
    seed: int,
    *,
    rank: int = 0,
    clean: bool = False,
) -> Iterator[Batch]:
    """Batches from a position on, for ever, read ahead by worker processes.

    Raises:
        TrainingError: a clip cannot be read.
    """
    reader = _Reader(config, augmentation, seed, clean)
    # The loader takes what is planned as its indices; only clips travel to the workers.
    plan: Any = order.plan(position, rank)
    loader: DataLoader[Batch | str] = DataLoader(
        reader,
        batch_size=None,
        sampler=_Endless(plan),
        num_workers=config.workers,
        prefetch_factor=_AHEAD if config.workers else None,
        worker_init_fn=_start_worker,
        # It would else draw from the generator that a step's own draws come from.
        generator=torch.Generator(),
    )
    for batch in loader:
        if isinstance(batch, str):
            raise TrainingError(batch)
        yield batch


def valid_batches(
    clips: Sequence[Clip], config: DataConfig, seed: int, *, clean: bool = False
) -> Iterator[Batch]:
    """Batches to measure on: each clip once, as it is, the same every time.

    Raises:
        TrainingError: a clip cannot be read.
    """
    chosen = sorted(clips, key=lambda clip: clip.seconds)
    nowhere = Position(0, 0, ())
    batch: list[tuple[Clip, int]] = []
    for clip in chosen:
        longest = clip.seconds + sum(config.silence)
        if batch and (len(batch) + 1) * longest > config.seconds:
            yield assemble(Planned(tuple(batch), nowhere), config, None, seed, clean=clean)
            batch = []
        batch.append((clip, 0))
    if batch:
        yield assemble(Planned(tuple(batch), nowhere), config, None, seed, clean=clean)


class _Reader(Dataset["Batch | str"]):
    """Makes batches of what is planned; an error comes as its text, whole and in one line."""

    def __init__(
        self,
        config: DataConfig,
        augmentation: AugmentationConfig | None,
        seed: int,
        clean: bool,
    ) -> None:
        self._arguments = (config, augmentation, seed)
        self._clean = clean

    def __getitem__(self, planned: Any) -> Batch | str:
        try:
            return assemble(planned, *self._arguments, clean=self._clean)
        except TrainingError as error:
            return str(error)


class _Endless:
    """A sampler of what is planned."""

    def __init__(self, plan: Iterator[Planned]) -> None:
        self._plan = plan

    def __iter__(self) -> Iterator[Planned]:
        return self._plan


def _start_worker(_: int) -> None:
    # Both may reach the whole group: the training process decides what becomes of it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.nice(_NICENESS)


def _padded(sounds: Sequence[Samples]) -> Tensor:
    padded = torch.zeros(len(sounds), max(len(sound) for sound in sounds))
    for row, sound in zip(padded, sounds, strict=True):
        row[: len(sound)] = torch.from_numpy(sound)
    return padded
