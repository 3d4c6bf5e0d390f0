"""The vocoder's source: sines that follow the pitch, and noise, the same every time."""

from typing import Any

import pytest
import torch
from torch import Tensor

from minmo.model import vocoder_source
from minmo.model.vocoder_source import HarmonicSource
from tests.published import published

RATE, HOP = 24_000, 480


def source_of(harmonics: int = 2) -> HarmonicSource:
    """One that adds its waves up, well below where they are bent."""
    source = HarmonicSource(harmonics, RATE, HOP).requires_grad_(False)
    source.mix.weight.fill_(0.5)
    source.mix.bias.fill_(0)
    return source


def strongest(samples: Tensor, count: int) -> list[float]:
    """The strongest frequencies of a signal in Hz, ascending."""
    spectrum = torch.fft.rfft(samples * torch.hann_window(len(samples))).abs()
    peaks = (spectrum[1:-1] > spectrum[:-2]) & (spectrum[1:-1] > spectrum[2:])
    height = torch.where(peaks, spectrum[1:-1], 0)
    bins = height.topk(count).indices + 1
    return sorted((bins * RATE / len(samples)).tolist())


def test_it_is_the_published_source_with_the_same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = published("chatterbox.models.s3gen.hifigan")
    module = theirs.SourceModuleHnNSF(RATE, HOP, harmonic_num=3, voiced_threshod=10)
    pitch = torch.tensor([[120.0, 130.5, 0.0, 3.0, 9.9, 10.1, 250.0, 251.0]])
    ours = HarmonicSource(3, RATE, HOP)
    ours.mix.load_state_dict(module.l_linear.state_dict())
    noise, phases = vocoder_source._tables(4, torch.device("cpu"))

    class Fixed:
        def __init__(self, **_: Any) -> None: ...

        def sample(self, sample_shape: tuple[int, ...]) -> Tensor:
            return phases.clone().view(sample_shape)

    def fixed_noise(like: Tensor) -> Tensor:
        return noise[: like.shape[2]].T[None, : like.shape[1]]

    monkeypatch.setattr(theirs, "Uniform", Fixed)
    monkeypatch.setattr(theirs.torch, "randn_like", fixed_noise)
    expected, _, _ = module(pitch.repeat_interleave(HOP, 1)[..., None])
    torch.testing.assert_close(ours(pitch), expected[..., 0], atol=1e-4, rtol=0)


def test_voiced_frames_are_the_pitch_and_its_multiples() -> None:
    samples = source_of()(torch.full((1, 50), 200.0))[0]
    assert strongest(samples, 3) == pytest.approx([200, 400, 600], abs=1)


def test_unvoiced_frames_are_noise() -> None:
    source = source_of()
    samples = source(torch.full((1, 50), 5.0))[0]
    spectrum = torch.fft.rfft(samples).abs()
    assert spectrum.max() < 6 * spectrum.mean()
    assert 0.02 < samples.std() < 0.04
    assert torch.equal(samples, source(torch.zeros(1, 50))[0])


def test_the_phase_goes_on_where_the_pitch_changes() -> None:
    pitch = torch.full((1, 4), 100.0)
    pitch[:, 2:] = 107.0
    samples = source_of(0)(pitch)[0]
    steps = (samples[1:] - samples[:-1]).abs()
    assert steps[2 * HOP - 1] < 1.5 * steps.max()
    assert steps.max() < 0.05 * 2 * torch.pi * 107 / RATE + 6 * 0.5 * 0.003 * 2


def test_an_hour_of_phase_is_as_exact_as_a_second() -> None:
    source, pitch = source_of(), torch.full((1, 1), 123.456)
    frames = 180_000
    turns = torch.tensor([frames * HOP * float(pitch) / RATE], dtype=torch.float64)
    start = torch.tensor([frames * HOP])
    late, _ = source.generate(pitch, start, turns)
    wrapped, _ = source.generate(pitch, start, turns % 1)
    torch.testing.assert_close(late, wrapped, atol=1e-6, rtol=0)


def test_the_same_pitch_makes_the_same_source() -> None:
    pitch = torch.tensor([[200.0, 0.0, 210.0], [0.0, 0.0, 90.0]])
    source = source_of()
    assert torch.equal(source(pitch), source(pitch.clone()))
    assert torch.equal(source(pitch)[1:], source(pitch[1:]))


def test_training_can_draw_other_noise() -> None:
    pitch, source = torch.zeros(2, 3), source_of()
    samples = source(pitch, torch.tensor([0, HOP]))
    assert torch.equal(samples[0, HOP:], samples[1, :-HOP])
    assert not torch.equal(samples[0], samples[1])


def test_gradients_reach_the_mix_and_not_the_pitch() -> None:
    source = source_of().requires_grad_(True)
    pitch = torch.full((1, 2), 100.0, requires_grad=True)
    source(pitch).square().sum().backward()
    assert pitch.grad is None
    assert source.mix.weight.grad is not None
