"""What teaches the vocoder: it falls as speech comes closer, and training follows it."""

import math

import pytest
import torch
from torch import Tensor

from minmo.model.features import VocoderMel
from minmo.model.vocoder import Vocoder, VocoderConfig
from minmo.model.vocoder_loss import (
    SpectrumDiscriminators,
    adversarial_loss,
    discriminator_loss,
    feature_matching_loss,
    magnitudes,
    mel_loss,
    pitch_loss,
    stft_loss,
)
from minmo.model.vocoder_published import normalise_weights

TINY = VocoderConfig(
    causal=True,
    mel_bins=4,
    sample_rate_hz=24_000,
    channels=16,
    harmonics=2,
    upsample_rates=(3, 2),
    upsample_kernel_sizes=(6, 4),
    block_kernel_sizes=(3,),
    block_dilations=((1, 3),),
    source_kernel_sizes=(3, 3),
    source_dilations=((1,), (1,)),
    stft_size=16,
    stft_hop=4,
    pitch_channels=4,
)
SMALL = ((64, 16), (128, 32))


def tone(hertz: float, samples: int = 4000, loudness: float = 0.3) -> Tensor:
    seconds = torch.arange(samples) / 24_000
    return loudness * torch.sin(2 * math.pi * hertz * seconds)[None]


def test_magnitudes_are_those_of_a_tone() -> None:
    spectrum = magnitudes(tone(24_000 / 64 * 8), 64, 16)
    assert spectrum.shape == (1, 251, 33)
    middle = spectrum[0, 100]
    assert int(middle.argmax()) == 8
    assert float(middle[8]) == pytest.approx(0.3 * 32 / 2, rel=1e-3)


def test_speech_is_at_no_distance_from_itself() -> None:
    assert float(stft_loss(tone(440), tone(440))) == pytest.approx(0, abs=1e-5)
    assert float(mel_loss(tone(440), tone(440), VocoderMel())) == 0
    assert float(pitch_loss(torch.tensor([[100.0, 0.0]]), torch.tensor([[104.0, 0.0]]))) == 2


def test_what_sounds_nearer_is_nearer() -> None:
    real, features = tone(440), VocoderMel()
    for loss in (stft_loss, lambda made, real: mel_loss(made, real, features)):
        near, far = loss(tone(440, loudness=0.27), real), loss(tone(1500), real)
        assert 0 < float(near) < float(far)


def test_spectral_distances_do_not_hear_phase() -> None:
    assert float(stft_loss(-tone(440), tone(440))) == pytest.approx(0, abs=1e-5)


def test_silence_gives_finite_gradients() -> None:
    made = torch.zeros(1, 4000, requires_grad=True)
    (stft_loss(made, tone(440)) + mel_loss(made, tone(440), VocoderMel())).backward()
    assert made.grad is not None
    assert torch.isfinite(made.grad).all()


def test_the_distance_teaches_a_vocoder() -> None:
    torch.manual_seed(0)
    vocoder = Vocoder(TINY)
    normalise_weights(vocoder)
    optimiser = torch.optim.Adam(vocoder.parameters(), lr=5e-3)
    mel = torch.ones(1, 40, TINY.mel_bins)
    real = tone(1000, 40 * TINY.hop) + 0.01 * torch.randn(1, 40 * TINY.hop)
    pitch, losses = torch.full((1, 40), 500.0), []
    for _ in range(60):
        optimiser.zero_grad()
        loss = stft_loss(vocoder(mel, pitch), real, SMALL)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]


def test_discriminators_learn_to_tell_noise_from_a_tone() -> None:
    torch.manual_seed(0)
    judges = SpectrumDiscriminators(channels=4, resolutions=SMALL)
    optimiser = torch.optim.Adam(judges.parameters(), lr=0.01)
    real, made = tone(1000, 1500), 0.1 * torch.randn(1, 1500)
    first = discriminator_loss(judges(made), judges(real)).item()
    for _ in range(40):
        optimiser.zero_grad()
        discriminator_loss(judges(made), judges(real)).backward()
        optimiser.step()
    assert discriminator_loss(judges(made), judges(real)).item() < 0.2 * first
    assert adversarial_loss(judges(made)).item() > 0.5 > adversarial_loss(judges(real)).item()
    # A vocoder that follows the gradient passes for the tone.
    made.requires_grad_(True)
    adversarial_loss(judges(made)).backward()
    assert made.grad is not None
    assert bool(made.grad.any())


def test_matched_features_teach_the_vocoder_alone() -> None:
    judges = SpectrumDiscriminators(channels=4, resolutions=SMALL)
    real, made = (tone(hertz, 1500).requires_grad_(True) for hertz in (1000, 900))
    assert feature_matching_loss(judges(real), judges(real)).item() == 0
    loss = feature_matching_loss(judges(made), judges(real))
    assert loss.item() > 0
    loss.backward()
    assert made.grad is not None
    assert real.grad is None


def test_discriminators_are_light() -> None:
    judges = SpectrumDiscriminators()
    assert sum(parameter.numel() for parameter in judges.parameters()) < 60_000
    verdicts = judges(tone(440, 12_000))
    assert len(verdicts) == 3
    assert verdicts[0][-1].shape[:3] == (1, 1, 12_000 // 128 + 1)
