"""What the vocoder is trained on: spectral distances, pitch, and discriminators.

Spectral distances at several resolutions (Yamamoto et al. 2020, section 2.2) come first and teach
it most; discriminators that look at spectra (Jang et al. 2021, UnivNet, section 2.2) then take
away the blur. Those are small enough to train on a CPU with crops of half a second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RESOLUTIONS = ((512, 128), (1024, 256), (2048, 512))
"""Samples of a window and of a hop."""

_SMALLEST_POWER = 1e-7
_SLOPE = 0.1


def magnitudes(samples: Tensor, size: int, hop: int) -> Tensor:
    """Magnitudes of short spectra, never quite 0, so that logarithms and gradients exist.

    Args:
        samples: `[batch, samples]`, more than half a window.
        size: samples of a window.
        hop: samples from one window to the next.

    Returns:
        `[batch, frames, size // 2 + 1]`.
    """
    window = torch.hann_window(size, device=samples.device, dtype=samples.dtype)
    spectra = torch.stft(samples, size, hop, window=window, return_complex=True)
    power = spectra.real.square() + spectra.imag.square()
    return power.clamp(min=_SMALLEST_POWER).sqrt().transpose(1, 2)


def stft_loss(
    made: Tensor, real: Tensor, resolutions: Sequence[tuple[int, int]] = RESOLUTIONS
) -> Tensor:
    """Spectral convergence and distance of log magnitudes, averaged over resolutions.

    Args:
        made: `[batch, samples]`, of the vocoder.
        real: `[batch, samples]`.
        resolutions: window and hop, in samples, of each spectrum.

    Returns:
        A scalar.
    """
    total = made.new_zeros(())
    for size, hop in resolutions:
        mine, wanted = magnitudes(made, size, hop), magnitudes(real, size, hop)
        convergence = (wanted - mine).norm(dim=(1, 2)) / wanted.norm(dim=(1, 2))
        total = total + convergence.mean() + F.l1_loss(mine.log(), wanted.log())
    return total / len(resolutions)


def mel_loss(made: Tensor, real: Tensor, features: Callable[[Tensor], Tensor]) -> Tensor:
    """Mean distance of log-mel spectra.

    Args:
        made: `[batch, samples]`, of the vocoder.
        real: `[batch, samples]`.
        features: of samples, differentiable, such as `VocoderMel`.

    Returns:
        A scalar.
    """
    return F.l1_loss(features(made), features(real))


def pitch_loss(predicted: Tensor, pitch: Tensor) -> Tensor:
    """Mean distance of pitches in Hz; the pitch of unvoiced frames is 0.

    Args:
        predicted: `[batch, frames]`.
        pitch: `[batch, frames]`.

    Returns:
        A scalar.
    """
    return F.l1_loss(predicted, pitch)


class SpectrumDiscriminator(nn.Module):
    """Convolutions over the log magnitudes at one resolution.

    Args:
        size: samples of a window.
        hop: samples from one window to the next.
        channels: of each layer.
    """

    def __init__(self, size: int, hop: int, channels: int) -> None:
        super().__init__()
        self.size, self.hop = size, hop
        self.layers = nn.ModuleList(
            [
                nn.Conv2d(1, channels, (3, 9), stride=(1, 2), padding=(1, 4)),
                nn.Conv2d(channels, channels, (3, 9), stride=(1, 2), padding=(1, 4)),
                nn.Conv2d(channels, channels, (3, 9), stride=(1, 2), padding=(1, 4)),
                nn.Conv2d(channels, channels, 3, padding=1),
            ]
        )
        self.head = nn.Conv2d(channels, 1, 3, padding=1)

    def forward(self, samples: Tensor) -> list[Tensor]:
        """Judges speech.

        Args:
            samples: `[batch, samples]`.

        Returns:
            What each layer made of it, `[batch, channels, frames, bins]`, and last how real each
            place looks, `[batch, 1, frames, bins]`: 1 for real, 0 for made.
        """
        hidden = magnitudes(samples, self.size, self.hop).log()[:, None]
        made = []
        for layer in self.layers:
            hidden = F.leaky_relu(layer(hidden), _SLOPE)
            made.append(hidden)
        return [*made, self.head(hidden)]


class SpectrumDiscriminators(nn.Module):
    """One discriminator for each resolution.

    Args:
        channels: of each layer.
        resolutions: window and hop, in samples, of each.
    """

    def __init__(
        self, channels: int = 16, resolutions: Sequence[tuple[int, int]] = RESOLUTIONS
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            [SpectrumDiscriminator(size, hop, channels) for size, hop in resolutions]
        )

    def forward(self, samples: Tensor) -> list[list[Tensor]]:
        """`[batch, samples]` to what each discriminator says of it."""
        return [part(samples) for part in self.parts]


def discriminator_loss(made: list[list[Tensor]], real: list[list[Tensor]]) -> Tensor:
    """Least squares (Mao et al. 2017, equation 2): real speech at 1, made speech at 0.

    Args:
        made: what the discriminators say of the vocoder's speech, cut off from the vocoder.
        real: what they say of real speech.

    Returns:
        A scalar.
    """
    losses = [
        (1 - wanted[-1]).square().mean() + mine[-1].square().mean()
        for mine, wanted in zip(made, real, strict=True)
    ]
    return torch.stack(losses).mean()


def adversarial_loss(made: list[list[Tensor]]) -> Tensor:
    """What the vocoder loses where the discriminators see through its speech. A scalar."""
    return torch.stack([(1 - mine[-1]).square().mean() for mine in made]).mean()


def feature_matching_loss(made: list[list[Tensor]], real: list[list[Tensor]]) -> Tensor:
    """Mean distance between what the discriminators' layers make of made and of real speech.

    Real speech is the target: no gradient goes through it. A scalar.
    """
    losses = [
        F.l1_loss(mine, wanted.detach())
        for mines, wanteds in zip(made, real, strict=True)
        for mine, wanted in zip(mines[:-1], wanteds[:-1], strict=True)
    ]
    return torch.stack(losses).mean()
