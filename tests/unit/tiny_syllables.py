"""What sounds a little like somebody who speaks in a room."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tests.unit.tiny_recordings import RATE, voice

Sound = npt.NDArray[np.float32]


def syllables(seconds: float, hertz: float = 150, rate: int = RATE) -> Sound:
    """A voice that rises and falls four times a second, down to silence."""
    time = np.arange(int(seconds * rate)) / rate
    return (voice(hertz, seconds, rate) * np.sin(4 * np.pi * time) ** 2).astype(np.float32)


def room(seconds: float, dbfs: float = -65) -> Sound:
    """Its noise."""
    noise = np.random.default_rng(1).standard_normal(int(seconds * RATE))
    return (noise * 10 ** (dbfs / 20)).astype(np.float32)
