"""Resampling, of whole clips and of streams, with every sample accounted for."""

from __future__ import annotations

import math

import numpy as np
import soxr

from minmo.audio.pcm import Samples

LISTENING_RATE_HZ = 16_000
"""The rate at which MinMo listens; positions in a stream are counted at it."""

# Flat up to nine tenths of the band, images and aliases below -100 dB. Better qualities differ in
# what nobody hears; the quickest lose the top fifth of the band.
_QUALITY = "MQ"
# More than the filter's length at any rate.
_RECENT_SECONDS = 0.4


def resampled_length(samples: int, from_hz: int, to_hz: int) -> int:
    """Samples at `to_hz` that last as long as these at `from_hz`, rounded to the nearest."""
    return (2 * samples * to_hz + from_hz) // (2 * from_hz)


def resample(samples: Samples, from_hz: int, to_hz: int) -> Samples:
    """Resamples a whole clip, `[samples]`, to exactly `resampled_length` samples."""
    return StreamResampler(from_hz, to_hz).process(samples, last=True)


class StreamResampler:
    """Resamples a stream; the pieces it gives are those of the whole, whatever pieces it gets.

    Its filter looks ahead: output lags behind input by up to 40 ms (from 44.1 or 48 kHz) or
    120 ms (from 8 kHz) until the last piece; equal rates pass through without delay. Output
    sample k is where input was at k * from_hz / to_hz: the delay of the filter does not shift it.
    """

    def __init__(self, from_hz: int, to_hz: int = LISTENING_RATE_HZ) -> None:
        self._from_hz = from_hz
        self._to_hz = to_hz
        self._stream = (
            None
            if from_hz == to_hz
            else soxr.ResampleStream(from_hz, to_hz, 1, dtype="float32", quality=_QUALITY)
        )
        self._finished = False
        self._recent: Samples = np.zeros(0, np.float32)
        self.samples_in = 0
        """Samples taken, at `from_hz`."""
        self.samples_out = 0
        """Samples given, at `to_hz`."""

    @property
    def samples_due(self) -> int:
        """Samples at `to_hz` that last as long as what was taken: `samples_out` after the last."""
        return resampled_length(self.samples_in, self._from_hz, self._to_hz)

    def process(self, chunk: Samples, *, last: bool = False) -> Samples:
        """Takes the next samples, gives those that are ready.

        Args:
            chunk: `[samples]` at `from_hz`, any number.
            last: nothing follows; what the filter still holds is given too.

        Returns:
            `[samples]` at `to_hz`.

        Raises:
            RuntimeError: the last chunk was processed before.
        """
        if self._finished:
            raise RuntimeError("the stream has ended with its last chunk: start a new one")
        self._finished = last
        self.samples_in += len(chunk)
        if self._stream is None:
            self.samples_out += len(chunk)
            return chunk
        self._remember(chunk)
        resampled: Samples = self._stream.resample_chunk(
            np.ascontiguousarray(chunk, np.float32), last=last
        )
        # The filter may end one sample off, and its last bits beyond what was taken.
        room = self.samples_due - self.samples_out
        if last and len(resampled) < room:
            resampled = np.pad(resampled, (0, room - len(resampled)))
        resampled = resampled[:room]
        self.samples_out += len(resampled)
        return resampled

    def preview(self) -> Samples:
        """What the last call would give if the stream ended here: `[samples_due - samples_out]`.

        For who cannot wait for the filter. The stream goes on as if nobody had asked.
        """
        missing = self.samples_due - self.samples_out
        if missing == 0:
            return np.zeros(0, np.float32)
        # The recent input starts where an input and an output sample coincide.
        first_out = (self.samples_in - len(self._recent)) * self._to_hz // self._from_hz
        resampled = resample(self._recent, self._from_hz, self._to_hz)
        begin = self.samples_out - first_out
        return resampled[begin : begin + missing]

    def _remember(self, chunk: Samples) -> None:
        recent = np.concatenate((self._recent, chunk))
        period = self._from_hz // math.gcd(self._from_hz, self._to_hz)
        spare = len(recent) - int(_RECENT_SECONDS * self._from_hz)
        self._recent = recent[max(0, spare) // period * period :]
