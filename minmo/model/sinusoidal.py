"""Sinusoidal positions: half of the channels sines, half cosines, of rising wavelengths."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Vectors of any positions, computed in float64: streams go on for hours.

    Args:
        positions: `[..., frames]`.
        width: channels, an even number.

    Returns:
        `[..., frames, width]`, float64.
    """
    half = width // 2
    index = torch.arange(half, dtype=torch.float64, device=positions.device)
    rates = torch.exp(index * (-math.log(10_000.0) / (half - 1)))
    angles = positions[..., None] * rates
    return torch.cat((angles.sin(), angles.cos()), dim=-1)
