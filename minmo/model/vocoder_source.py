"""The excitation of the vocoder: pitch, its harmonics, and noise.

A predictor reads the pitch off the mel spectrogram. Sines at the pitch and its multiples where
speech is voiced, noise where it is not, are mixed into one signal for the filter to shape
(neural source filter; HiFTNet, Li et al. 2023, section 2.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minmo.model.delayed_conv import DelayedConv1d, Span, TailState
from minmo.model.streaming import SlotState, frame_positions

_PITCH_LAYERS = 5
_SINE_AMPLITUDE = 0.1
_VOICED_NOISE = 0.003
_UNVOICED_NOISE = _SINE_AMPLITUDE / 3
_VOICED_ABOVE_HZ = 10.0
_NOISE_SAMPLES = 1 << 17
"""Samples after which the noise repeats, 5.5 s at 24 kHz: too rarely to be heard."""


@dataclass
class PitchState(SlotState):
    """What the pitch predictor remembers: the tails of its convolutions."""

    convs: list[TailState]


class PitchPredictor(nn.Module):
    """Convolutions over the mel spectrogram, then one number a frame.

    Args:
        mel_bins: channels of the spectrogram.
        channels: of the convolutions.
        causal: whether no frame sees a later one.
    """

    def __init__(self, mel_bins: int, channels: int, *, causal: bool) -> None:
        super().__init__()
        self.convs = nn.ModuleList()
        self.delay = 0
        for index in range(_PITCH_LAYERS):
            width = channels if index else mel_bins
            conv = DelayedConv1d(width, channels, 3, causal=causal, delay=self.delay)
            self.convs.append(conv)
            self.delay = conv.output_delay
        self.head = nn.Linear(channels, 1)

    def forward(self, mel: Tensor) -> Tensor:
        """Pitch of a whole clip.

        Args:
            mel: `[batch, mel_bins, frames]`.

        Returns:
            `[batch, frames]`, Hz; near 0 where speech has none.
        """
        for conv in self.convs:
            mel = F.elu(conv(mel))
        return self._read(mel)

    def initial_state(
        self, slots: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> PitchState:
        """The state of streams that start."""
        return PitchState([conv.initial_state(slots, device, dtype) for conv in self._layers()])

    def step(self, mel: Tensor, span: Span, state: PitchState) -> Tensor:
        """Pitch of the next frames, late by `delay`; 0 outside the stream.

        Args:
            mel: `[slots, mel_bins, frames]`.
            span: at the mel rate.
            state: changed in place.

        Returns:
            `[slots, frames]`, Hz.
        """
        for conv, part in zip(self._layers(), state.convs, strict=True):
            mel = F.elu_(conv.step(mel, span, part))
        return span.hide(self._read(mel)[:, None], self.delay)[:, 0]

    def _layers(self) -> list[DelayedConv1d]:
        return list(self.convs)  # type: ignore[arg-type]

    def _read(self, hidden: Tensor) -> Tensor:
        hertz: Tensor = self.head(hidden.transpose(1, 2))
        return hertz[..., 0].abs()


class HarmonicSource(nn.Module):
    """Sines at the pitch and its multiples, and noise, mixed into one signal.

    Noise and the harmonics' first phases come from fixed tables, so that the same pitch makes the
    same signal every time.

    Args:
        harmonics: multiples of the pitch besides the pitch itself.
        sample_rate_hz: of the signal.
        hop: samples of a frame.
    """

    def __init__(self, harmonics: int, sample_rate_hz: int, hop: int) -> None:
        super().__init__()
        self.harmonics, self.sample_rate_hz, self.hop = harmonics, sample_rate_hz, hop
        self.mix = nn.Linear(harmonics + 1, 1)

    def forward(self, pitch: Tensor, starts: Tensor | None = None) -> Tensor:
        """The source of whole clips. Gradients reach the mix only, as published.

        Args:
            pitch: `[batch, frames]`, Hz.
            starts: `[batch]`, samples of noise to pass over: training draws them, or it would
                know no other noise than the first.

        Returns:
            `[batch, frames * hop]`.
        """
        zeros = torch.zeros(len(pitch), device=pitch.device, dtype=torch.int64)
        source, _ = self.generate(pitch, zeros if starts is None else starts, zeros.double())
        return source

    def generate(self, pitch: Tensor, starts: Tensor, turns: Tensor) -> tuple[Tensor, Tensor]:
        """The source of the next frames.

        Args:
            pitch: `[slots, frames]`, Hz.
            starts: `[slots]`, samples before these.
            turns: `[slots]`, the phase that the pitch has reached, in whole turns, float64.

        Returns:
            `[slots, frames * hop]` and the phase at the end of each frame, `[slots, frames]`,
            float64.
        """
        with torch.no_grad():
            speeds = pitch.double() / self.sample_rate_hz
            after = turns[:, None] + (speeds * self.hop).cumsum(1)
            sample = torch.arange(1 - self.hop, 1, device=pitch.device)
            # Whole turns are dropped before float32 would lose the fraction.
            phases = ((after[:, :, None] + speeds[:, :, None] * sample) % 1).flatten(1).float()
            positions = frame_positions(starts, phases.shape[1])
            voiced = (pitch > _VOICED_ABOVE_HZ).repeat_interleave(self.hop, 1)
            waves = self._waves(phases, voiced, positions)
        mixed: Tensor = torch.tanh(self.mix(waves.to(self.mix.weight.dtype)))
        return mixed[..., 0], after

    def _waves(self, phases: Tensor, voiced: Tensor, positions: Tensor) -> Tensor:
        """`[slots, samples]` each to `[slots, samples, harmonics + 1]`."""
        noise, first = _tables(self.harmonics + 1, phases.device)
        multiples = torch.arange(1, self.harmonics + 2, device=phases.device) * (2 * math.pi)
        sines = torch.addcmul(first, phases[..., None], multiples).sin_().mul_(_SINE_AMPLITUDE)
        sounding = voiced[..., None].float()
        sines.mul_(sounding)
        loudness = _UNVOICED_NOISE + (_VOICED_NOISE - _UNVOICED_NOISE) * sounding
        return sines.addcmul_(F.embedding(positions % _NOISE_SAMPLES, noise), loudness)


@cache
def _tables(waves: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Noise `[samples, waves]` and first phases `[waves]` in radians, the same everywhere."""
    with torch.inference_mode(False):
        generator = torch.Generator("cpu").manual_seed(0)
        noise = torch.randn(_NOISE_SAMPLES, waves, generator=generator, device="cpu")
        phases = torch.rand(waves, generator=generator, device="cpu").mul_(2).sub_(1)
        phases.mul_(math.pi)[0] = 0
        return noise.to(device), phases.to(device)
