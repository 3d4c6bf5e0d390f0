"""Convolutions that see past and future frames, whole or streamed.

Whole clips are padded with zeros at both ends of every layer. In a stream the future is not there
yet, so that what a layer gives is late: its *delay* is the number of frames, at its own rate, by
which the frames of a step lie behind those that the step was given. Delays add up from layer to
layer and are the same for every slot. Frames that lie before a stream's start or behind its end
are zeros wherever they come up, as they are in a whole clip; a stream that ends is led on past its
end until all that is late has come out.

Inside, channels come before frames, `[slots, channels, frames]`, as convolutions want it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minmo.model.streaming import SlotState, frame_positions


@dataclass
class TailState(SlotState):
    """The last frames of a signal.

    Attributes:
        tail: `[slots, channels, kept]`.
    """

    tail: Tensor

    @classmethod
    def zeros(
        cls,
        slots: int,
        channels: int,
        kept: int,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> TailState:
        """The state of streams that start."""
        return cls(torch.zeros(slots, channels, kept, device=device, dtype=dtype))

    def join(self, chunk: Tensor, lengths: Tensor) -> Tensor:
        """Puts the tail before a chunk, and keeps the end of both as the next tail.

        Args:
            chunk: `[slots, channels, frames]`.
            lengths: `[slots]`, how many of its frames are there.

        Returns:
            `[slots, channels, kept + frames]`.
        """
        kept = self.tail.shape[2]
        if kept == 0:
            return chunk
        joined = torch.cat((self.tail, chunk), dim=2)
        places = frame_positions(lengths, kept)[:, None].expand(-1, joined.shape[1], -1)
        torch.gather(joined, 2, places, out=self.tail)
        return joined


@dataclass(frozen=True)
class Span:
    """Which frames of the streams in its slots a step is about, counted at one rate.

    Attributes:
        starts: `[slots]`, frames before this step.
        lengths: `[slots]`, frames of this step that are there.
        ends: `[slots]`, frames of the whole stream; `UNKNOWN_END` while it goes on.
        frames: of the step, the same for every slot.
    """

    starts: Tensor
    lengths: Tensor
    ends: Tensor
    frames: int

    def at_rate(self, rate: int, more: int = 0) -> Span:
        """The same span where each frame is `rate` frames and a whole stream has `more` besides."""
        return Span(
            self.starts * rate, self.lengths * rate, self.ends * rate + more, self.frames * rate
        )

    def positions(self, delay: int) -> Tensor:
        """`[slots, frames]`, numbers of the frames that a signal late by `delay` has here."""
        return frame_positions(self.starts - delay, self.frames)

    def hide(self, signal: Tensor, delay: int) -> Tensor:
        """Puts zeros where a late signal lies before a stream's start or behind its end.

        A signal that is not late needs none of it: nothing that comes out sees so far.

        Args:
            signal: `[slots, channels, frames]`; changed in place.
            delay: frames by which it is late.
        """
        if delay == 0:
            return signal
        positions = self.positions(delay)
        return signal.masked_fill_(
            ((positions < 0) | (positions >= self.ends[:, None]))[:, None], 0
        )


UNKNOWN_END = 1 << 40


class DelayLine:
    """Holds a signal back, so that it lines up with one that took a longer way.

    Args:
        channels: of the signal.
        frames: to hold back.
    """

    def __init__(self, channels: int, frames: int) -> None:
        self.channels, self.frames = channels, frames

    def initial_state(
        self, slots: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> TailState:
        """The state of streams that start."""
        return TailState.zeros(slots, self.channels, self.frames, device, dtype)

    def step(self, signal: Tensor, span: Span, state: TailState) -> Tensor:
        """`[slots, channels, frames]`, later by `frames`."""
        return state.join(signal, span.lengths)[..., : signal.shape[2]]


class DelayedConv1d(nn.Conv1d):
    """A convolution of stride 1, centred on its frame, or causal: ending with it.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: odd unless causal.
        dilation: frames between two taps.
        causal: whether no frame sees a later one.
        delay: frames by which the input is late in a stream.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        dilation: int = 1,
        causal: bool,
        delay: int = 0,
    ) -> None:
        if not causal and kernel_size % 2 == 0:
            raise ValueError(f"a centred convolution needs an odd kernel, not {kernel_size}")
        super().__init__(in_channels, out_channels, kernel_size, dilation=dilation)
        self.reach = dilation * (kernel_size - 1)
        self.look_ahead = 0 if causal else self.reach // 2
        self.input_delay, self.output_delay = delay, delay + self.look_ahead

    def forward(self, signal: Tensor) -> Tensor:
        """`[batch, in_channels, frames]` to `[batch, out_channels, frames]`."""
        return super().forward(F.pad(signal, (self.reach - self.look_ahead, self.look_ahead)))

    def initial_state(
        self, slots: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> TailState:
        """The state of streams that start."""
        return TailState.zeros(slots, self.in_channels, self.reach, device, dtype)

    def step(self, signal: Tensor, span: Span, state: TailState) -> Tensor:
        """`[slots, in_channels, frames]` to `[slots, out_channels, frames]`, `look_ahead` later."""
        return span.hide(super().forward(state.join(signal, span.lengths)), self.output_delay)


class DelayedUpsample(nn.ConvTranspose1d):
    """A transposed convolution that makes `rate` frames of one.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: at least `rate`; by an even number more unless causal.
        rate: frames made of one.
        causal: whether no frame sees an input that begins after it.
        delay: input frames by which the input is late in a stream.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        rate: int,
        *,
        causal: bool,
        delay: int = 0,
    ) -> None:
        more = kernel_size - rate
        if more < 0 or (not causal and more % 2):
            raise ValueError(
                f"a kernel of {kernel_size} cannot make {rate} frames of one: it takes {rate}"
                f" frames at least{'' if causal else ' and an even number more'}"
            )
        super().__init__(in_channels, out_channels, kernel_size, stride=rate)
        self.rate = rate
        self.look_ahead = 0 if causal else more // 2
        self.left_context = -(-kernel_size // rate) - 1
        self.output_delay = delay * rate + self.look_ahead

    def forward(self, signal: Tensor) -> Tensor:  # type: ignore[override]
        """`[batch, in_channels, frames]` to `[batch, out_channels, frames * rate]`."""
        return super().forward(signal).narrow(2, self.look_ahead, signal.shape[2] * self.rate)

    def initial_state(
        self, slots: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> TailState:
        """The state of streams that start."""
        return TailState.zeros(slots, self.in_channels, self.left_context, device, dtype)

    def step(self, signal: Tensor, span: Span, state: TailState) -> Tensor:
        """`[slots, in_channels, frames]` to `[slots, out_channels, frames * rate]`.

        Args:
            signal: the next inputs.
            span: at the output's rate.
            state: changed in place.
        """
        joined = state.join(signal, span.lengths // self.rate)
        made = super().forward(joined)
        return span.hide(
            made.narrow(2, self.left_context * self.rate, span.frames), self.output_delay
        )


class DelayedDownsample(nn.Conv1d):
    """A convolution that makes one frame of `rate` and sees twice as many.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        rate: frames that one is made of; at 1 each frame is seen alone.
        causal: whether no frame sees an input behind its own `rate`.
        delay: input frames by which the input is late in a stream.
    """

    def __init__(
        self, in_channels: int, out_channels: int, rate: int, *, causal: bool, delay: int = 0
    ) -> None:
        width = 2 * rate if rate > 1 else 1
        super().__init__(in_channels, out_channels, width, stride=rate)
        self.rate, self.causal, self.width = rate, causal, width
        if causal or rate == 1:
            self._before = width - rate
            self.output_delay = delay // rate
        else:
            self._before = rate // 2
            self.output_delay = (delay + width - 1 - self._before) // rate
        # Frames before a step's own that its first output starts with.
        self.left_context = self.output_delay * rate + self._before - delay

    def forward(self, signal: Tensor) -> Tensor:
        """`[batch, in_channels, frames]` to `[batch, out_channels, frames // rate]`.

        Unless causal, the last window may reach behind the clip, where zeros are.
        """
        behind = 0 if self.causal or self.rate == 1 else self.rate // 2
        return super().forward(F.pad(signal, (self._before, behind)))

    def initial_state(
        self, slots: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> TailState:
        """The state of streams that start."""
        return TailState.zeros(slots, self.in_channels, self.left_context, device, dtype)

    def step(self, signal: Tensor, span: Span, state: TailState) -> Tensor:
        """`[slots, in_channels, frames]` to `[slots, out_channels, frames // rate]`.

        Args:
            signal: the next inputs.
            span: at the output's rate.
            state: changed in place.
        """
        joined = state.join(signal, span.lengths * self.rate)
        seen = joined[..., : (span.frames - 1) * self.rate + self.width]
        return span.hide(super().forward(seen), self.output_delay)
