"""Rotary position embedding over neighbouring pairs of channels, as Moonshine rotates them."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_table(positions: int, rotary_dim: int, theta: float) -> Tensor:
    """Cosine and sine of every position and pair of channels.

    Returns:
        `[2, positions, rotary_dim // 2]`: cosines, then sines, float32.
    """
    frequencies = theta ** -(torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim)
    angles = torch.arange(positions, dtype=torch.float32)[:, None] * frequencies
    return torch.stack((angles.cos(), angles.sin()))


def rotary_rows(positions: Tensor, rotary_dim: int, theta: float) -> Tensor:
    """Rows of `rotary_table` for streams that go on for hours, whose angles need float64.

    Args:
        positions: `[batch, frames]`.
        rotary_dim: channels of a head that are turned.
        theta: base of the frequencies.

    Returns:
        `[2, batch, 1, frames, rotary_dim // 2]`: cosines, then sines, float64.
    """
    pairs = torch.arange(0, rotary_dim, 2, dtype=torch.float64, device=positions.device)
    angles = positions[:, None, :, None] * theta ** -(pairs / rotary_dim)
    return torch.stack((angles.cos(), angles.sin()))


def rotate(heads: Tensor, table: Tensor) -> Tensor:
    """Turns the leading channels of each head by its position; the rest passes through.

    Args:
        heads: `[..., heads, frames, head_dim]`.
        table: `[2, frames, pairs]` or more in front, the rows of `rotary_table` for these frames.
    """
    cos, sin = table[0], table[1]
    rotary_dim = 2 * cos.shape[-1]
    even, odd = heads[..., 0:rotary_dim:2], heads[..., 1:rotary_dim:2]
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)
    if rotary_dim == heads.shape[-1]:
        return turned
    return torch.cat((turned, heads[..., rotary_dim:]), dim=-1)
