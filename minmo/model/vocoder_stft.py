"""Short spectra at both ends of the vocoder: of its source, and of the speech that it makes."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from minmo.model.delayed_conv import Span, TailState

_LOUDEST = 1e2


class ShortSpectrum:
    """Real and imaginary parts of a signal's short spectra.

    Causal: a window ends with its hop, over zeros before the start. Else it is centred on the
    hop's first sample, mirrored at both ends, and there is one more than there are hops.

    Args:
        size: samples of a window, a multiple of twice the hop.
        hop: samples from one window to the next.
        causal: where windows lie.
        delay: samples by which the signal is late in a stream, a multiple of the hop.
    """

    def __init__(self, size: int, hop: int, *, causal: bool, delay: int = 0) -> None:
        self.size, self.hop, self.causal = size, hop, causal
        self.channels = size + 2
        # The first window of a centred spectrum mirrors `size / 2` samples and needs one more.
        late = 0 if causal else size // 2 // hop + 1
        self.output_delay = delay // hop + late
        self._input_delay = delay
        # Samples before a step's own that its first window starts with.
        self._left = size - hop if causal else late * hop + size // 2
        # At the end of a stream a window mirrors one sample before it.
        self._kept = self._left if causal else self._left + 1

    def __call__(self, signal: Tensor) -> Tensor:
        """`[batch, samples]` to `[batch, size + 2, frames]`."""
        signal = signal[:, None]
        if self.causal:
            return self._transform(F.pad(signal, (self.size - self.hop, 0)))
        return self._transform(F.pad(signal, (self.size // 2, self.size // 2), mode="reflect"))

    def initial_state(
        self, slots: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> TailState:
        """The state of streams that start."""
        return TailState.zeros(slots, 1, self._kept, device, dtype)

    def step(self, signal: Tensor, span: Span, state: TailState) -> Tensor:
        """Spectra of the next samples, late by `output_delay` frames.

        Args:
            signal: `[slots, samples]`.
            span: at the rate of windows.
            state: changed in place.

        Returns:
            `[slots, size + 2, frames]`; zeros outside the stream.
        """
        joined = state.join(signal[:, None], span.lengths * self.hop)
        if self.causal:
            return self._transform(joined)
        count = (span.frames - 1) * self.hop + self.size
        places = self._kept - self._left + torch.arange(count, device=signal.device)
        first = span.starts * self.hop - self._input_delay - self._left
        positions = first[:, None] + torch.arange(count, device=signal.device)
        last = ((span.ends - 1) * self.hop - 1)[:, None]
        mirrored = positions.abs()
        mirrored = torch.minimum(mirrored, 2 * last - mirrored)
        # Far outside the stream there is nothing to mirror, and `hide` takes it out.
        places = (places + mirrored - positions).clamp(0, joined.shape[2] - 1)
        spectra = self._transform(joined.gather(2, places[:, None]))
        return span.hide(spectra, self.output_delay)

    def _transform(self, signal: Tensor) -> Tensor:
        basis, _ = _bases(self.size, self.hop, signal.device, signal.dtype)
        return F.conv1d(signal, basis, stride=self.hop)


class OverlapAdd:
    """Speech of magnitudes and phases: inverse spectra, windowed, laid over one another.

    Causal: frame i begins at sample `i * hop`, so that the first `size - hop` samples fade in. Else
    it is centred there, and both ends are scaled up for the frames that they lack.

    Args:
        size: samples of a frame, four times the hop.
        hop: samples from one frame to the next.
        causal: where frames lie.
        delay: frames by which the spectra are late in a stream.
    """

    def __init__(self, size: int, hop: int, *, causal: bool, delay: int = 0) -> None:
        self.size, self.hop, self.causal = size, hop, causal
        self.output_delay = delay * hop + (0 if causal else size // 2)
        self._left = size // hop - 1

    def __call__(self, spectra: Tensor) -> Tensor:
        """Speech of a whole clip.

        Args:
            spectra: `[batch, size + 2, frames]`, logarithms of magnitudes, then what the phases
                are the sines of.

        Returns:
            `[batch, samples]`, `frames * hop`, or a hop fewer unless causal.
        """
        samples = self._synthesise(_parts(spectra))
        count = spectra.shape[2] * self.hop
        if self.causal:
            return samples[:, :count]
        samples = samples.narrow(1, self.size // 2, count - self.hop)
        numbers = torch.arange(samples.shape[1], device=samples.device)
        return samples * self._edges(numbers[None], samples.shape[1], samples.dtype)

    def initial_state(
        self, slots: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> TailState:
        """The state of streams that start."""
        return TailState.zeros(slots, self.size + 2, self._left, device, dtype)

    def step(self, spectra: Tensor, span: Span, state: TailState) -> Tensor:
        """The next samples, late by `output_delay`.

        Args:
            spectra: `[slots, size + 2, frames]`.
            span: at the rate of frames.
            state: changed in place.

        Returns:
            `[slots, frames * hop]`; without meaning outside the stream.
        """
        delay = (self.output_delay - (0 if self.causal else self.size // 2)) // self.hop
        parts = span.hide(_parts(spectra), delay)
        samples = self._synthesise(state.join(parts, span.lengths))
        samples = samples.narrow(1, self._left * self.hop, span.frames * self.hop)
        if self.causal:
            return samples
        numbers = span.at_rate(self.hop).positions(self.output_delay)
        ends = ((span.ends - 1) * self.hop)[:, None]
        return samples * self._edges(numbers, ends, samples.dtype)

    def _synthesise(self, parts: Tensor) -> Tensor:
        _, basis = _bases(self.size, self.hop, parts.device, parts.dtype)
        return F.conv_transpose1d(parts, basis, stride=self.hop)[:, 0]

    def _edges(self, numbers: Tensor, ends: Tensor | int, dtype: torch.dtype) -> Tensor:
        """What makes up for the one frame that the first and the last hop of samples lack."""
        first, last = _edge_scales(self.size, self.hop, numbers.device, dtype)
        phase = numbers % self.hop
        scale = first[phase].masked_fill(numbers >= self.hop, 1)
        return torch.where(numbers >= ends - self.hop, last[phase], scale)


def _parts(spectra: Tensor) -> Tensor:
    """Logarithms of magnitudes and raw phases to real and imaginary parts, all in `dim` 1."""
    magnitudes, phases = spectra.chunk(2, dim=1)
    magnitudes = magnitudes.exp().clamp(max=_LOUDEST)
    phases = phases.sin()
    return torch.cat((magnitudes * phases.cos(), magnitudes * phases.sin()), dim=1)


def _hann(size: int) -> Tensor:
    angles = torch.arange(size, dtype=torch.float64, device="cpu") * (2 * math.pi / size)
    return (1 - angles.cos()) / 2


@cache
def _bases(size: int, hop: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Windowed Fourier bases, `[size + 2, 1, size]` each: of the spectrum and of its inverse.

    The inverse is divided by the sum of the squared windows that lie over one another.
    """
    with torch.inference_mode(False):
        time = torch.arange(size, dtype=torch.float64, device="cpu")
        bins = torch.arange(size // 2 + 1, dtype=torch.float64, device="cpu")
        angles = 2 * math.pi / size * bins[:, None] * time
        window = _hann(size)
        forward = torch.cat((angles.cos(), -angles.sin())) * window
        twice = torch.full_like(bins, 2)
        twice[[0, -1]] = 1
        # The first and the last bin have no imaginary part: its sines are zeros exactly.
        sines = angles.sin()
        sines[[0, -1]] = 0
        inverse = torch.cat((twice[:, None] * angles.cos(), -twice[:, None] * sines)) / size
        inverse = inverse * window / window.square()[::hop].sum()
        return forward[:, None].to(device, dtype), inverse[:, None].to(device, dtype)


@cache
def _edge_scales(
    size: int, hop: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """`[hop]` each, for the first and for the last hop of samples."""
    with torch.inference_mode(False):
        power = _hann(size).square()
        whole = power[::hop].sum()
        first, last = whole / (whole - power[-hop:]), whole / (whole - power[:hop])
        return first.to(device, dtype), last.to(device, dtype)
