"""Stands in for a sound card: MICROPHONE is heard once, then silence; LOUDSPEAKER gets the rest."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import numpy as np
import soundfile

from minmo.audio.resample import resample


class _Stream:
    def __init__(
        self, *, samplerate: int, blocksize: int, channels: int, dtype: str, callback: Callable
    ) -> None:
        assert (channels, dtype) == (1, "float32")
        self.rate = samplerate
        self.block = blocksize
        self._callback = callback
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> _Stream:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10)

    def _run(self) -> None:
        due = time.monotonic()
        while not self._over.is_set():
            self.next(lambda block: self._callback(block, self.block, None, None))
            due += self.block / self.rate
            time.sleep(max(0.0, due - time.monotonic()))

    def next(self, call: Callable[[np.ndarray], None]) -> None:
        raise NotImplementedError


class InputStream(_Stream):
    def __init__(self, **how) -> None:
        super().__init__(**how)
        samples, rate = soundfile.read(os.environ["MICROPHONE"], dtype="float32")
        self._left = resample(samples, rate, self.rate)

    def next(self, call: Callable[[np.ndarray], None]) -> None:
        piece, self._left = self._left[: self.block], self._left[self.block :]
        call(np.pad(piece, (0, self.block - len(piece)))[:, None])


class OutputStream(_Stream):
    def __init__(self, **how) -> None:
        super().__init__(**how)
        self._played: list[np.ndarray] = []

    def next(self, call: Callable[[np.ndarray], None]) -> None:
        block = np.full((self.block, 1), np.nan, np.float32)
        call(block)
        self._played.append(block[:, 0])

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        soundfile.write(os.environ["LOUDSPEAKER"], np.concatenate(self._played), self.rate)
