"""Texts to shards of speech, on several cores, from where an earlier run was stopped."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing.sharedctypes import SynchronizedArray
from multiprocessing.synchronize import Event
from pathlib import Path

from minmo.audio.resample import LISTENING_RATE_HZ
from minmo.training.data.errors import DataError
from minmo.training.data.lines import SPLITS, Line, Style
from minmo.training.data.restyling import pitch_factor, restyle
from minmo.training.data.shards import (
    CLIPS,
    Clip,
    Made,
    band_of,
    check_rate,
    digest_of,
    is_made,
    sole_writer,
    write_shard,
)
from minmo.training.data.voice import VOICE, VOICE_HZ, Symbols, UnsayableError, Voice
from minmo.training.words import spoken_words

NAME = "libritts"

_SHORTEST_SECONDS, _LONGEST_SECONDS = 0.4, 14.0
# Below what people run, above what is idle.
_NICE = 10
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Job:
    """A shard to make: its name, its lines, and their phonemes, sentence by sentence."""

    shard: str
    lines: tuple[Line, ...]
    phonemes: tuple[tuple[str, ...], ...]

    def digest(self) -> str:
        """Of what decides how it sounds."""
        styles = [line.instructed for line in self.lines if line.instructed]
        parts = (*self.lines, *self.phonemes, *styles)
        return digest_of((VOICE.artifact.sha256, VOICE.version, *parts))


@dataclass(frozen=True)
class Progress:
    """How far it is.

    Attributes:
        done: utterances of this run.
        total: utterances that were missing when it began.
        seconds: of audio made in this run.
    """

    done: int
    total: int
    seconds: float


def jobs_of(
    lines: Sequence[Line], phonemes: Sequence[Sequence[str]], limit: int | None = None
) -> list[Job]:
    """The shards of all lines. Of every set a first part comes early, so that one can begin.

    Args:
        lines: of all sets.
        phonemes: of each line.
        limit: utterances of train at most, the first ones; all where None.
    """
    by_split: dict[str, list[tuple[Line, tuple[str, ...]]]] = {split: [] for split in SPLITS}
    for line, sentences in zip(lines, phonemes, strict=True):
        by_split[line.split].append((line, tuple(sentences)))
    by_split["train"] = by_split["train"][:limit]
    jobs: dict[str, list[Job]] = {}
    for split, pairs in by_split.items():
        chunks = [pairs[start : start + CLIPS] for start in range(0, len(pairs), CLIPS)]
        jobs[split] = [
            Job(f"{split}.{number:04d}", tuple(p[0] for p in chunk), tuple(p[1] for p in chunk))
            for number, chunk in enumerate(chunks)
        ]
    return [*jobs["train"][:2], *jobs["valid"], *jobs["test"], *jobs["train"][2:]]


def make_shard(
    root: Path,
    job: Job,
    voice: Voice,
    symbols: Symbols,
    told: Callable[[float], None] = lambda seconds: None,
) -> Made:
    """Makes one shard.

    Args:
        root: of all shards.
        job: what is in it.
        voice: that speaks.
        symbols: its numbers of phonemes.
        told: hears the length of each utterance, 0 for one that is left out; what it raises ends
            the shard, of which nothing stays.
    """
    began = time.monotonic()
    skipped: Counter[str] = Counter()

    def clips() -> Iterator[Clip]:
        for line, sentences in zip(job.lines, job.phonemes, strict=True):
            clip, reason = _clip(line, sentences, voice, symbols)
            skipped.update([reason] if reason else [])
            told(len(clip.samples) / voice.rate_hz if clip else 0.0)
            if clip:
                yield clip

    def made(count: int, seconds: float) -> Made:
        worked = time.monotonic() - began
        return Made(NAME, job.digest(), count, seconds, dict(skipped), worked)

    return write_shard(root, job.shard, clips(), made, voice.rate_hz)


def _clip(
    line: Line, sentences: Sequence[str], voice: Voice, symbols: Symbols
) -> tuple[Clip | None, str]:
    seed = int.from_bytes(hashlib.sha256(f"{line.voice} {line.text}".encode()).digest()[:8], "big")
    style = line.instructed.style if line.instructed else Style()
    try:
        ids = [symbols.ids(sentence) for sentence in sentences]
        said = voice.say(ids, line.voice, line.rate / style.rate, seed)
    except UnsayableError:
        return None, "cannot be said"
    # The voice itself speaks slowly or fast; it cannot do the rest.
    samples = restyle(said.samples, voice.rate_hz, replace(style, rate=1.0))
    native_hz = min(VOICE_HZ, voice.rate_hz) * pitch_factor(style)
    custom = {**line.custom, **band_of(native_hz, voice.rate_hz)}
    if len(said.words) == len(spoken_words(line.text)):
        custom["words"] = [[round(start, 3), round(end, 3)] for start, end in said.words]
    if len(samples) < _SHORTEST_SECONDS * voice.rate_hz:
        return None, "too short"
    if len(samples) > _LONGEST_SECONDS * voice.rate_hz:
        return None, "too long"
    return Clip(line.id, samples, line.text, f"{NAME}-{line.voice}", custom), ""


def make_shards(
    root: Path,
    jobs: Sequence[Job],
    folder: Path,
    workers: int,
    told: Callable[[Progress], None],
    rate_hz: int = LISTENING_RATE_HZ,
) -> list[Made]:
    """Makes the shards that are missing; when it is interrupted, whole ones stay.

    Args:
        root: of all shards.
        jobs: all of them.
        folder: of the voice.
        workers: processes, each with one thread.
        told: hears twice a second how far it is.
        rate_hz: of the speech.

    Returns:
        What was made now, in no order.

    Raises:
        DataError: the folder holds something else, another process writes there, or a worker died.
    """
    with sole_writer(root):
        check_rate(root, rate_hz)
        missing = [job for job in jobs if not is_made(root, job.shard, NAME, job.digest())]
        if not missing:
            return []
        context = multiprocessing.get_context("spawn")
        stop, counts = context.Event(), context.Array("d", 2)
        given = (root, folder, rate_hz, stop, counts, os.getpid())
        pool = ProcessPoolExecutor(min(workers, len(missing)), context, _begin, given)
        total = sum(len(job.lines) for job in missing)
        try:
            futures = [pool.submit(_work, job) for job in missing]
            return _watch(futures, lambda: told(Progress(int(counts[0]), total, counts[1])))
        except BrokenProcessPool:
            raise DataError(
                "a worker was killed, perhaps because memory ran out; run it again, with fewer "
                "--workers: what is whole stays"
            ) from None
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def _watch(futures: Sequence[Future[Made]], tell: Callable[[], None]) -> list[Made]:
    left = set(futures)
    while left:
        done, left = wait(left, _POLL_SECONDS, FIRST_COMPLETED)
        for future in done:
            future.result()
        tell()
    return [future.result() for future in futures]


class _StoppedError(Exception):
    """The command is ending."""


class _Worker:
    def __init__(
        self,
        root: Path,
        folder: Path,
        rate_hz: int,
        stop: Event,
        counts: SynchronizedArray[float],
    ) -> None:
        self.root = root
        self.voice, self.symbols = Voice(folder, rate_hz), Symbols.of(folder)
        self.stop, self.counts = stop, counts

    def told(self, seconds: float) -> None:
        if self.stop.is_set():
            raise _StoppedError
        with self.counts.get_lock():
            self.counts[0] += 1
            self.counts[1] += seconds


_worker: _Worker | None = None


def _begin(
    root: Path,
    folder: Path,
    rate_hz: int,
    stop: Event,
    counts: SynchronizedArray[float],
    parent: int,
) -> None:
    """Sets up a worker's process, which ends when the command is killed."""
    global _worker  # noqa: PLW0603 (a process has one)
    # Ctrl-C reaches the whole group; the command tells its workers to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(_NICE)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _worker = _Worker(root, folder, rate_hz, stop, counts)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os._exit(1)


def _work(job: Job) -> Made:
    assert _worker is not None
    return make_shard(_worker.root, job, _worker.voice, _worker.symbols, _worker.told)
