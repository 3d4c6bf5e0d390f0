"""The pitch of recordings, which the vocoder's source is to follow.

DIO finds it and StoneMask refines it (Morise et al. 2009; Morise et al. 2016, WORLD, section 2.1).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minmo.training.errors import TrainingError

_LOWEST_HZ, _HIGHEST_HZ = 60.0, 600.0
# DIO follows a pitch from frame to frame, so it needs them closer together than the mel has them.
_STEPS_PER_FRAME = 4
_CENTS_PER_OCTAVE = 1200


def pitch_of(samples: Tensor, rate_hz: int, hop: int) -> Tensor:
    """The pitch in the middle of each hop.

    Args:
        samples: `[samples]`, -1 to 1, more than a hop.
        rate_hz: of the samples.
        hop: samples of a frame.

    Returns:
        `[samples // hop]`, Hz, float32, on the CPU; 0 where speech is not voiced.

    Raises:
        TrainingError: WORLD is not installed.
    """
    try:
        import pyworld
    except ImportError as error:
        raise TrainingError("training needs pyworld: pip install 'minmo[train]'") from error
    frames = len(samples) // hop
    # The first estimate is of the first sample: half a hop is left out, and given back behind.
    moved = np.pad(samples.cpu().numpy().astype(np.float64)[hop // 2 :], (0, hop))
    period_ms = 1000 * hop / rate_hz / _STEPS_PER_FRAME
    rough, times = pyworld.dio(
        moved, rate_hz, f0_floor=_LOWEST_HZ, f0_ceil=_HIGHEST_HZ, frame_period=period_ms
    )
    chosen = slice(0, frames * _STEPS_PER_FRAME, _STEPS_PER_FRAME)
    hertz = pyworld.stonemask(moved, rough[chosen].copy(), times[chosen].copy(), rate_hz)
    return torch.from_numpy(hertz).float()


class PitchDistance(NamedTuple):
    """How far the pitch of made speech is from that of real speech, summed up over frames.

    Attributes:
        cents: sum of squares, over frames that are voiced in both.
        voiced: those frames.
        voicing: frames that are voiced in one of them only.
        frames: all of them.
    """

    cents: float = 0.0
    voiced: int = 0
    voicing: int = 0
    frames: int = 0

    @classmethod
    def between(cls, made: Tensor, real: Tensor) -> PitchDistance:
        """Of two `[frames]`, Hz, 0 where they are not voiced."""
        both = (made > 0) & (real > 0)
        cents = _CENTS_PER_OCTAVE * (made[both] / real[both]).log2()
        return cls(
            float(cents.square().sum()),
            int(both.sum()),
            int(((made > 0) != (real > 0)).sum()),
            len(real),
        )

    def plus(self, other: PitchDistance) -> PitchDistance:
        """The distance over the frames of both."""
        return PitchDistance(
            self.cents + other.cents,
            self.voiced + other.voiced,
            self.voicing + other.voicing,
            self.frames + other.frames,
        )

    def figures(self) -> dict[str, float]:
        """`pitch_cents`, root mean square, and `voicing_error`, share of frames."""
        return {
            "pitch_cents": (self.cents / max(1, self.voiced)) ** 0.5,
            "voicing_error": self.voicing / max(1, self.frames),
        }
