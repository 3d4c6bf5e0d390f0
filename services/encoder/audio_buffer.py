"""The latest audio of a stream, at positions that count from the start of the conversation."""

from __future__ import annotations

import numpy as np

from minmo.audio.pcm import Samples


class AudioBuffer:
    """A ring that keeps the last `capacity` samples.

    Args:
        capacity: samples that are kept; their memory is taken at once.
        start_sample: position of the first sample to come.
    """

    def __init__(self, capacity: int, start_sample: int) -> None:
        self._ring: Samples = np.zeros(capacity, np.float32)
        self._first = start_sample
        self.end = start_sample
        """One past the latest sample."""

    @property
    def start(self) -> int:
        """The oldest sample that is held."""
        return max(self._first, self.end - len(self._ring))

    def append(self, samples: Samples) -> None:
        """Adds the next samples, `[samples]`; the oldest make room."""
        kept = samples[-len(self._ring) :]
        begin = (self.end + len(samples) - len(kept)) % len(self._ring)
        head = kept[: len(self._ring) - begin]
        self._ring[begin : begin + len(head)] = head
        self._ring[: len(kept) - len(head)] = kept[len(head) :]
        self.end += len(samples)

    def read(self, start: int, end: int) -> Samples:
        """A copy of the samples from `start` to `end`, which must be held."""
        if not self.start <= start <= end <= self.end:
            raise IndexError(f"samples {start} to {end} are not within {self.start} to {self.end}")
        begin = start % len(self._ring)
        head = self._ring[begin : begin + end - start]
        return np.concatenate((head, self._ring[: end - start - len(head)]))
