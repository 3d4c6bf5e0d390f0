"""G.711: telephony's 8-bit audio, to and from 16-bit PCM, by tables.

Both laws are piecewise linear: eight segments of sixteen steps each, the sign apart.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Law = Literal["mu", "a"]

_MU_BIAS = 33
_SEGMENTS = 8


def _decoded(law: Law) -> NDArray[np.int16]:
    """What each of the 256 codes stands for."""
    codes = np.arange(256, dtype=np.int32)
    inverted = codes ^ (0xFF if law == "mu" else 0x55)
    segment, step = inverted >> 4 & 7, inverted & 15
    if law == "mu":
        # 14-bit samples: the bias puts the segments' borders at powers of two.
        size = (((2 * step + _MU_BIAS) << segment) - _MU_BIAS) * 4
        negative = inverted & 0x80 != 0
    else:
        # 13-bit samples: the two lowest segments have the same step.
        size = np.where(segment == 0, 2 * step + 1, (2 * step + 33) << np.maximum(segment - 1, 0))
        size = size * 8
        negative = inverted & 0x80 == 0
    return np.where(negative, -size, size).astype(np.int16)


def _encoded(decoded: NDArray[np.int16]) -> NDArray[np.uint8]:
    """The code of each 16-bit sample (as an unsigned index): the one whose value is nearest."""
    order = np.argsort(decoded, kind="stable")
    values = decoded[order].astype(np.int32)
    samples = np.arange(65536, dtype=np.uint16).astype(np.int16).astype(np.int32)
    place = np.clip(np.searchsorted(values, samples), 1, len(values) - 1)
    lower = samples - values[place - 1] < values[place] - samples
    codes: NDArray[np.uint8] = order[place - lower].astype(np.uint8)
    return codes


_DECODED: dict[Law, NDArray[np.int16]] = {"mu": _decoded("mu"), "a": _decoded("a")}
_ENCODED: dict[Law, NDArray[np.uint8]] = {law: _encoded(table) for law, table in _DECODED.items()}


def decode(law: Law, data: bytes) -> bytes:
    """G.711 to 16-bit little-endian PCM, two bytes for each."""
    samples: NDArray[np.int16] = _DECODED[law][np.frombuffer(data, np.uint8)]
    return samples.astype("<i2").tobytes()


def encode(law: Law, pcm: bytes) -> bytes:
    """16-bit little-endian PCM to G.711, a byte for each two. `pcm` holds whole samples."""
    codes: NDArray[np.uint8] = _ENCODED[law][np.frombuffer(pcm, "<u2")]
    return codes.tobytes()
