"""Features of sound, from samples: log-mel spectra as the published models were trained on them.

Each kind has its own window, its own mel scale and its own logarithm; none is trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MelScale = Literal["slaney", "kaldi"]

# Slaney's scale is linear up to 1 kHz, 15 mel, and logarithmic from there on.
_SLANEY_LINEAR_HZ = 1000.0
_SLANEY_HZ_PER_MEL = 200.0 / 3.0
_SLANEY_MEL_PER_OCTAVE = 27.0 / math.log(6.4)


def hertz_to_mel(hertz: Tensor, scale: MelScale) -> Tensor:
    """Frequencies on a mel scale, of any shape."""
    if scale == "kaldi":
        return 1127.0 * torch.log1p(hertz / 700.0)
    above = torch.log(hertz.clamp(min=_SLANEY_LINEAR_HZ) / _SLANEY_LINEAR_HZ)
    linear = hertz.clamp(max=_SLANEY_LINEAR_HZ) / _SLANEY_HZ_PER_MEL
    return linear + _SLANEY_MEL_PER_OCTAVE * above


def mel_to_hertz(mel: Tensor, scale: MelScale) -> Tensor:
    """Inverse of `hertz_to_mel`."""
    if scale == "kaldi":
        return 700.0 * torch.expm1(mel / 1127.0)
    bend = _SLANEY_LINEAR_HZ / _SLANEY_HZ_PER_MEL
    above = torch.exp((mel.clamp(min=bend) - bend) / _SLANEY_MEL_PER_OCTAVE)
    return mel.clamp(max=bend) * _SLANEY_HZ_PER_MEL * above


def mel_filters(
    sample_rate_hz: int,
    fft_size: int,
    mel_bins: int,
    low_hz: float,
    high_hz: float,
    scale: MelScale,
) -> Tensor:
    """Triangular filters from the bins of a spectrum to mel bins.

    Slaney's triangles are straight in hertz and have an area of one, Kaldi's are straight in mel
    and have a height of one.

    Returns:
        `[fft_size // 2 + 1, mel_bins]`, float32.
    """
    double = torch.float64
    hertz = torch.arange(fft_size // 2 + 1, dtype=double) * (sample_rate_hz / fft_size)
    ends = hertz_to_mel(torch.tensor([low_hz, high_hz], dtype=double), scale)
    steps = torch.arange(mel_bins + 2, dtype=double) / (mel_bins + 1)
    corners = ends[0] + (ends[1] - ends[0]) * steps
    if scale == "slaney":
        bins, corners = hertz, mel_to_hertz(corners, scale)
    else:
        bins = hertz_to_mel(hertz, scale)
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    rising = (bins[:, None] - left) / (centre - left)
    falling = (right - bins[:, None]) / (right - centre)
    filters = torch.minimum(rising, falling).clamp(min=0)
    if scale == "slaney":
        filters = filters * (2.0 / (right - left))
    return filters.float()


def hann_window(length: int) -> Tensor:
    """Periodic, as for a short-time Fourier transform: `[length]`."""
    return torch.hann_window(length, periodic=True, dtype=torch.float64).float()


def hamming_window(length: int) -> Tensor:
    """Symmetric, as Kaldi has it: `[length]`."""
    return torch.hamming_window(length, periodic=False, dtype=torch.float64).float()


def povey_window(length: int) -> Tensor:
    """Kaldi's own, a Hann window to the power of 0.85: `[length]`."""
    return torch.hann_window(length, periodic=False, dtype=torch.float64).pow(0.85).float()


def _power(windows: Tensor, fft_size: int) -> Tensor:
    """Power in each bin of the spectrum, `[..., fft_size // 2 + 1]`, of windows `[..., length]`."""
    spectrum: Tensor = torch.fft.rfft(windows, n=fft_size)
    return spectrum.real.square() + spectrum.imag.square()


class _Features(nn.Module):
    """Tables that move with the module and stay float32: lower precision is heard in a spectrum."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def moved(tensor: Tensor) -> Tensor:
            changed = fn(tensor)
            if changed.dtype == tensor.dtype:
                return changed
            return tensor.to(changed.device)

        applied: Self = super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        return applied

    def _table(self, name: str, values: Tensor) -> None:
        self.register_buffer(name, values, persistent=False)


class WhisperLogMel(_Features):
    """Log-mel spectrum of Whisper: windows of 25 ms every 10 ms at 16 kHz, 128 dB of a range cut.

    Args:
        mel_bins: 80, or 128 from large-v3 on.
    """

    window: Tensor
    filters: Tensor

    fft_size = 400
    hop = 160
    silence = -10.0
    """Lowest value, log10 of a power of 1e-10."""

    def __init__(self, mel_bins: int) -> None:
        super().__init__()
        self._table("window", hann_window(self.fft_size))
        self._table("filters", mel_filters(16_000, self.fft_size, mel_bins, 0, 8000, "slaney"))

    def forward(self, samples: Tensor) -> Tensor:
        """Features of whole clips, cut and scaled by each clip's loudest value.

        Args:
            samples: `[batch, samples]`, -1 to 1; more than 200, which are mirrored at both ends.

        Returns:
            `[batch, samples // 160, mel_bins]`; frame j is centred on sample `160 j`.
        """
        half = self.fft_size // 2
        mirrored = F.pad(samples.float()[:, None], (half, half), mode="reflect")[:, 0]
        # The published features leave the last frame out.
        powers = self.log_powers(mirrored)[:, : samples.shape[1] // self.hop]
        return self.scaled(powers, powers.amax((1, 2), keepdim=True))

    def log_powers(self, samples: Tensor) -> Tensor:
        """log10 of the power in each mel bin, before it is cut and scaled.

        Args:
            samples: `[..., samples]`, at least 400.

        Returns:
            `[..., frames, mel_bins]`: frame j sees samples `160 j` to `160 j + 400`.
        """
        windows = samples.float().unfold(-1, self.fft_size, self.hop) * self.window
        return (_power(windows, self.fft_size) @ self.filters).clamp(min=1e-10).log10()

    @staticmethod
    def scaled(log_powers: Tensor, loudest: Tensor) -> Tensor:
        """Cuts what is 80 dB below the loudest value and scales the rest to about -1 to 1.

        Args:
            log_powers: of `log_powers`.
            loudest: that broadcasts with them.
        """
        return (torch.maximum(log_powers, loudest - 8.0) + 4.0) / 4.0


class KaldiFbank(_Features):
    """Log-mel filter bank as Kaldi computes it: windows of 25 ms every 10 ms at 16 kHz, no dither.

    Args:
        mel_bins: 80 for SenseVoice and for CAM++.
        window: of 400 samples: `hamming_window` for SenseVoice, `povey_window` for CAM++.
        scale: of the samples: SenseVoice counts them as 16-bit integers, CAM++ from -1 to 1.
    """

    window: Tensor
    filters: Tensor

    length = 400
    hop = 160
    fft_size = 512

    def __init__(
        self,
        mel_bins: int = 80,
        window: Callable[[int], Tensor] = hamming_window,
        scale: float = 32_768.0,
    ) -> None:
        super().__init__()
        self.scale = scale
        self._table("window", window(self.length))
        self._table("filters", mel_filters(16_000, self.fft_size, mel_bins, 20, 8000, "kaldi"))

    def forward(self, samples: Tensor) -> Tensor:
        """Features of whole windows only.

        Args:
            samples: `[..., samples]`, -1 to 1; at least 400.

        Returns:
            `[..., frames, mel_bins]`: frame j sees samples `160 j` to `160 j + 400`.
        """
        windows = (self.scale * samples.float()).unfold(-1, self.length, self.hop)
        windows = windows - windows.mean(-1, keepdim=True)
        before = torch.cat((windows[..., :1], windows[..., :-1]), dim=-1)
        emphasised = (windows - 0.97 * before) * self.window
        power = _power(emphasised, self.fft_size)
        return (power @ self.filters).clamp(min=torch.finfo(torch.float32).eps).log()


def speaker_features(fbank: KaldiFbank, samples: Tensor) -> Tensor:
    """What CAM++ reads: a filter bank whose mean over the clip is taken off.

    Args:
        fbank: with `povey_window` and a scale of 1.
        samples: `[batch, samples]` at 16 kHz, -1 to 1.

    Returns:
        `[batch, frames, mel_bins]`.
    """
    features: Tensor = fbank(samples)
    return features - features.mean(-2, keepdim=True)


def stack_frames(frames: Tensor, stacked: int, stride: int) -> Tensor:
    """Low frame rate: joins neighbouring frames and keeps one of `stride`.

    Frame i is made of frames `stride i - (stacked - 1) // 2` and the `stacked - 1` after it; the
    first and the last frame stand for those that do not exist.

    Args:
        frames: `[..., frames, dim]`.
        stacked: frames of a joined one.
        stride: frames from one joined one to the next.

    Returns:
        `[..., ceil(frames / stride), stacked * dim]`.
    """
    count = frames.shape[-2]
    joined = -(-count // stride)
    first = stride * torch.arange(joined, device=frames.device) - (stacked - 1) // 2
    rows = first[:, None] + torch.arange(stacked, device=frames.device)
    return frames[..., rows.clamp(0, count - 1), :].flatten(-2)


class VocoderMel(_Features):
    """Log-mel spectrum of CosyVoice 2 at 24 kHz: windows of 80 ms every 20 ms, up to 8 kHz.

    Args:
        mel_bins: 80.
    """

    window: Tensor
    filters: Tensor

    sample_rate_hz = 24_000
    fft_size = 1920
    hop = 480

    def __init__(self, mel_bins: int = 80) -> None:
        super().__init__()
        filters = mel_filters(self.sample_rate_hz, self.fft_size, mel_bins, 0, 8000, "slaney")
        self._table("window", hann_window(self.fft_size))
        self._table("filters", filters)

    def forward(self, samples: Tensor) -> Tensor:
        """Features of whole clips, differentiable (the vocoder's loss goes through them).

        Args:
            samples: `[batch, samples]`, -1 to 1; more than 720, which are mirrored at both ends.

        Returns:
            `[batch, samples // 480, mel_bins]`.
        """
        padding = (self.fft_size - self.hop) // 2
        mirrored = F.pad(samples.float()[:, None], (padding, padding), mode="reflect")[:, 0]
        windows = mirrored.unfold(-1, self.fft_size, self.hop) * self.window
        magnitude = (_power(windows, self.fft_size) + 1e-9).sqrt()
        return (magnitude @ self.filters).clamp(min=1e-5).log()
