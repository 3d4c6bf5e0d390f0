"""How high a recording's sound reaches.

Speech that was recorded at 16 kHz, or went through a line, has nothing in the upper part of the
spectrum. What learns from it must not take that for how the speaker sounds.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minmo.model.features import VocoderMel
from minmo.training.batches import Batch

_BAND_HZ = 100.0
# Speech falls by about 50 dB from its strongest band to 11 kHz; what a filter has taken away, or 16
# bits have rounded off, lies below -90 dB.
_QUIETEST = 10**-7.5
# The edge of a filter takes a part of what is below it.
_SURE = 0.95


def bandwidth_of(samples: Tensor, rate_hz: int, stated_hz: float = math.inf) -> float:
    """The frequency up to which a recording is sure to have what its speaker's voice has, in Hz.

    Args:
        samples: `[samples]`; silence is taken to lack nothing.
        rate_hz: of the samples.
        stated_hz: what is said of the recording; it may reach less high, and not higher.
    """
    # What begins or ends loudly would sound at all frequencies.
    window = torch.hann_window(len(samples), dtype=torch.float64)
    power = torch.fft.rfft(samples.cpu() * window).abs().square()
    width = max(1, round(_BAND_HZ * len(samples) / rate_hz))
    bands = power[: len(power) // width * width].view(-1, width).sum(1)
    heard = torch.nonzero(bands > _QUIETEST * bands.max())
    highest = rate_hz / 2
    if len(heard):
        highest = (int(heard[-1]) + 1) * width * rate_hz / len(samples)
    highest = min(highest, stated_hz)
    return _SURE * highest if highest < _SURE * rate_hz / 2 else rate_hz / 2


class ClipBands:
    """How high each clip's sound reaches, found out the first time that it is heard.

    A clip's own `bandwidth_hz`, where it has one, is the most that it can be.

    Args:
        limited: whether to find out at all; else every clip is taken to lack nothing.
    """

    def __init__(self, limited: bool) -> None:
        self._limited = limited
        self._known: dict[str, float] = {}

    def __call__(self, batch: Batch) -> Tensor:
        """`[batch]`, Hz."""
        if not self._limited:
            device = batch.samples.device
            return torch.full((len(batch.clips),), batch.sample_rate / 2, device=device)
        for clip, row, length in zip(
            batch.clips, batch.samples, batch.lengths.tolist(), strict=True
        ):
            if clip.id not in self._known:
                stated = float(clip.custom.get("bandwidth_hz", math.inf))
                self._known[clip.id] = bandwidth_of(row[:length], batch.sample_rate, stated)
        known = [self._known[clip.id] for clip in batch.clips]
        return torch.tensor(known, device=batch.samples.device)


def known_bins(features: VocoderMel, bands: Tensor) -> Tensor:
    """The mel bins that recordings have whole.

    Args:
        features: of the bins.
        bands: `[batch]`, how high each recording reaches, Hz.

    Returns:
        `[batch, mel_bins]`, true for those.
    """
    hertz = torch.arange(len(features.filters), device=bands.device)
    hertz = hertz * (features.sample_rate_hz / features.fft_size)
    ends = ((features.filters > 0) * hertz[:, None]).amax(0)
    return ends <= bands[:, None]


def limit_band(samples: Tensor, hertz: Tensor, rate_hz: int) -> Tensor:
    """Takes away what is above a frequency, differentiable.

    Args:
        samples: `[batch, samples]`.
        hertz: `[batch]`.
        rate_hz: of the samples.

    Returns:
        The same shape.
    """
    spectra = torch.fft.rfft(samples)
    bins = torch.arange(spectra.shape[1], device=samples.device) * (rate_hz / samples.shape[1])
    limited: Tensor = torch.fft.irfft(spectra * (bins <= hertz[:, None]), n=samples.shape[1])
    return limited
