"""Convolutions over time that see no future frame, whole or streamed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minmo.model.streaming import SlotState, advance


@dataclass
class ConvState(SlotState):
    """The last inputs of a convolution.

    Attributes:
        tail: `[slots, dilation * (kernel_size - 1), channels]`.
    """

    tail: Tensor


class CausalConv1d(nn.Conv1d):
    """A convolution of stride 1 whose output at a frame depends on that frame and earlier ones.

    Frames come before channels, as everywhere in the network.
    """

    @property
    def left_context(self) -> int:
        """Frames before its own that an output sees."""
        return int(self.dilation[0]) * (int(self.kernel_size[0]) - 1)

    def forward(self, frames: Tensor) -> Tensor:
        """`[batch, frames, in_channels]` to `[batch, frames, out_channels]`."""
        return self._convolve(F.pad(frames, (0, 0, self.left_context, 0)))

    def initial_state(
        self, slots: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> ConvState:
        """The state of streams that start."""
        shape = (slots, self.left_context, self.in_channels)
        return ConvState(torch.zeros(shape, device=device, dtype=dtype))

    def step(self, chunk: Tensor, lengths: Tensor, state: ConvState) -> Tensor:
        """`[slots, frames, in_channels]` to `[slots, frames, out_channels]`."""
        joined, tail = advance(state.tail, chunk, lengths)
        state.tail.copy_(tail)
        return self._convolve(joined)

    def _convolve(self, frames: Tensor) -> Tensor:
        return super().forward(frames.transpose(1, 2)).transpose(1, 2)
