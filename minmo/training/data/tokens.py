"""Recordings to speech tokens, shard by shard, from where an earlier run was stopped.

Each clip is named by itself and as a whole, by the pretrained voice encoder and the speech
tokenizer that is installed: 25 tokens a second; an unfinished group at its end has none.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch

from minmo.model.speech_tokenizer import SpeechTokenizer
from minmo.training.errors import TrainingError
from minmo.training.shar import SAMPLE_RATE, Clip, read_audio, read_shard
from minmo.training.speech_tokens import (
    Tokens,
    are_named,
    digest_of,
    shards_of,
    tokenizer_sha256,
    write_tokens,
)
from minmo.training.whole_clips import WholeClipEncoder
from minmo.weights.modules import load_module
from minmo.weights.spoken import TOKENIZER

_MOST_TOKENS = np.iinfo(np.int16).max + 1
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Named:
    """What was done, or so far.

    Attributes:
        shards: named now.
        known: shards that had been named before.
        clips: named now.
        seconds: of audio in them.
        tokens: of them.
    """

    shards: int = 0
    known: int = 0
    clips: int = 0
    seconds: float = 0.0
    tokens: int = 0


class TokenNamer:
    """Names the speech tokens of clips.

    Args:
        encoder: the pretrained voice encoder.
        tokenizer: the speech tokenizer.

    Raises:
        TrainingError: there are more different tokens than a file can tell apart.
    """

    def __init__(self, encoder: WholeClipEncoder, tokenizer: SpeechTokenizer) -> None:
        if tokenizer.config.speech_tokens > _MOST_TOKENS:
            raise TrainingError(
                f"the preset has {tokenizer.config.speech_tokens} speech tokens; at most "
                f"{_MOST_TOKENS} can be kept of recordings: lower speech_tokenizer.dimensions"
            )
        self._encoder, self._tokenizer = encoder, tokenizer.eval()

    @classmethod
    def installed(cls, preset: str) -> TokenNamer:
        """With the weights of a preset that are here.

        Raises:
            WeightsError: they are missing, or were not trained together.
        """
        tokenizer = cast(SpeechTokenizer, load_module(preset, TOKENIZER))
        return cls(WholeClipEncoder.pretrained(preset), tokenizer)

    @torch.inference_mode()
    def tokens_of(self, samples: torch.Tensor) -> Tokens:
        """The speech tokens of a clip, `[tokens]`, of its samples `[samples]` at 16 kHz.

        Raises:
            ValueError: the clip is longer than the voice encoder takes.
        """
        frames, _ = self._encoder.frames(samples[None], torch.tensor([len(samples)]))
        tokens: Tokens = self._tokenizer(frames)[0].numpy().astype(np.int16)
        return tokens


def name_tokens(
    folders: Sequence[Path],
    sets: Sequence[str],
    preset: str,
    workers: int,
    told: Callable[[Named, int], None] = lambda named, clips: None,
) -> Named:
    """Names the tokens of all clips that have none yet; when it is interrupted, whole shards stay.

    Args:
        folders: of shards.
        sets: names of the sets.
        preset: whose speech tokenizer: a name, or the path of a TOML file.
        workers: shards that are worked on at the same time, each with one thread.
        told: hears twice a second how far it is, and how many clips are to be named now.

    Raises:
        TrainingError: there is no tokenizer, a clip cannot be read, or tokens cannot be written.
        WeightsError: the voice encoder is missing, or is another one than the tokenizer's.
    """
    sha256 = tokenizer_sha256(preset)
    found = shards_of(folders, sets)
    missing = [
        _Shard(root, folder, digest_of(folder), list(read_shard(folder)))
        for root, folder in found
        if not are_named(root, folder, sha256)
    ]
    total = sum(len(shard.clips) for shard in missing)
    work = _Work(TokenNamer.installed(preset), sha256, Named(known=len(found) - len(missing)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(max(1, min(workers, len(missing))))
    try:
        left = {pool.submit(work.name, shard) for shard in missing}
        while left:
            done, left = wait(left, _POLL_SECONDS, FIRST_COMPLETED)
            for future in done:
                future.result()
            told(work.named, total)
    finally:
        work.stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)
    return work.named


class _Shard(NamedTuple):
    root: Path
    folder: Path
    digest: str
    clips: list[Clip]


class _Work:
    """What the threads share."""

    def __init__(self, namer: TokenNamer, sha256: str, named: Named) -> None:
        self._namer, self._sha256, self._named = namer, sha256, named
        self._lock = threading.Lock()
        self.stop = threading.Event()

    @property
    def named(self) -> Named:
        """What was done so far."""
        with self._lock:
            return self._named

    def name(self, shard: _Shard) -> None:
        """Names the clips of a shard, unless the work is to stop."""
        tokens: dict[str, Tokens] = {}
        for clip in shard.clips:
            if self.stop.is_set():
                return
            tokens[clip.id] = self._clip(clip)
        write_tokens(shard.root, shard.folder, self._sha256, shard.digest, tokens)
        self._count(shards=1)

    def _clip(self, clip: Clip) -> Tokens:
        samples = read_audio(clip)
        try:
            tokens = self._namer.tokens_of(torch.from_numpy(samples))
        except ValueError as error:
            raise TrainingError(f"clip {clip.id} in {clip.archive}: {error}") from error
        self._count(clips=1, seconds=len(samples) / SAMPLE_RATE, tokens=len(tokens))
        return tokens

    def _count(self, **more: float) -> None:
        with self._lock:
            now = {name: getattr(self._named, name) + value for name, value in more.items()}
            self._named = replace(self._named, **now)
