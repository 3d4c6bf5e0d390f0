"""Residual blocks of the vocoder: dilated convolutions with periodic activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minmo.model.delayed_conv import DelayedConv1d, DelayLine, Span, TailState
from minmo.model.streaming import SlotState

_SMALLEST = 1e-9


class Snake(nn.Module):
    """x + sin²(ax) / a with an a for each channel (Ziyin et al. 2020, equation 3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def forward(self, signal: Tensor) -> Tensor:
        """`[batch, channels, frames]` to the same shape."""
        alpha = self.alpha[:, None]
        scale = (alpha + _SMALLEST).reciprocal()
        if torch.is_grad_enabled():
            return torch.addcmul(signal, (signal * alpha).sin().square(), scale)
        wave = (signal * alpha).sin_()
        wave.mul_(wave)
        return torch.addcmul(signal, wave, scale, out=wave)


@dataclass
class BlockState(SlotState):
    """What a residual block remembers: tails of its convolutions, and what goes around them."""

    dilated: list[TailState]
    plain: list[TailState]
    around: list[TailState]


class ResidualBlock(nn.Module):
    """Pairs of a dilated and a plain convolution, each pair with a residual around it.

    Args:
        channels: of input and output.
        kernel_size: of all convolutions.
        dilations: of the first convolution of each pair.
        causal: whether no frame sees a later one.
        delay: frames by which the input is late in a stream.
    """

    def __init__(
        self, channels: int, kernel_size: int, dilations: Sequence[int], *, causal: bool, delay: int
    ) -> None:
        super().__init__()
        self.dilated, self.plain = nn.ModuleList(), nn.ModuleList()
        self.dilated_snakes = nn.ModuleList([Snake(channels) for _ in dilations])
        self.plain_snakes = nn.ModuleList([Snake(channels) for _ in dilations])
        self._around: list[DelayLine] = []
        for dilation in dilations:
            first = DelayedConv1d(
                channels, channels, kernel_size, dilation=dilation, causal=causal, delay=delay
            )
            second = DelayedConv1d(
                channels, channels, kernel_size, causal=causal, delay=first.output_delay
            )
            self.dilated.append(first)
            self.plain.append(second)
            self._around.append(DelayLine(channels, second.output_delay - delay))
            delay = second.output_delay
        self.output_delay = delay

    def forward(self, signal: Tensor) -> Tensor:
        """`[batch, channels, frames]` to the same shape."""
        for first_snake, first, second_snake, second in zip(
            self.dilated_snakes, self.dilated, self.plain_snakes, self.plain, strict=True
        ):
            signal = signal + second(second_snake(first(first_snake(signal))))
        return signal

    def initial_state(
        self, slots: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> BlockState:
        """The state of streams that start."""

        def states(layers: Sequence[DelayedConv1d | DelayLine]) -> list[TailState]:
            return [layer.initial_state(slots, device, dtype) for layer in layers]

        return BlockState(states(self.dilated), states(self.plain), states(self._around))  # type: ignore[arg-type]

    def step(self, signal: Tensor, span: Span, state: BlockState) -> Tensor:
        """`[slots, channels, frames]` to the same shape, late by `output_delay`."""
        for index, (first, second) in enumerate(self._pairs()):
            held = self._around[index].step(signal, span, state.around[index])
            change = self.dilated_snakes[index](signal)
            change = first.step(change, span, state.dilated[index])
            change = self.plain_snakes[index](change)
            signal = second.step(change, span, state.plain[index]).add_(held)
        return signal

    def _pairs(self) -> list[tuple[DelayedConv1d, DelayedConv1d]]:
        return list(zip(self.dilated, self.plain, strict=True))  # type: ignore[arg-type]
