"""The speaker embedding is the published CAM++, and clips of a batch stay apart."""

import math

import pytest
import torch
from torch import Tensor, nn

from minmo.model.speaker_embedding import (
    AngularMarginLoss,
    SpeakerEmbedding,
    SpeakerEmbeddingConfig,
)
from minmo.presets import load_preset
from tests.published import published

SMALL = SpeakerEmbeddingConfig(
    mel_bins=16, width=12, growth=4, initial_channels=8, bottleneck_scale=2, blocks=(2, 3, 2)
)


def fbank(frames: int, bins: int = 16, seed: int = 0) -> Tensor:
    """A voice: bins that move together, each in its measure, and noise."""
    generator = torch.Generator().manual_seed(seed)
    voice, beat, noise = (
        torch.randn(1, *shape, generator=generator)
        for shape in [(1, bins), (frames, 1), (frames, bins)]
    )
    return 3 * voice * beat + noise - 5


def as_trained(module: nn.Module) -> nn.Module:
    """Random weights that pass on what they read, and batch normalisation that does something."""
    generator = torch.Generator().manual_seed(0)
    for name, value in module.state_dict().items():
        if value.ndim > 1:
            gain = math.sqrt(1.7 / value[0].numel())
            value.copy_(gain * torch.randn(value.shape, generator=generator))
        elif name.endswith(("weight", "running_var")):
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
        elif value.ndim == 1:
            value.copy_(0.3 * torch.randn(value.shape, generator=generator))
    return module.eval()


def small() -> SpeakerEmbedding:
    made = SpeakerEmbedding(SMALL)
    as_trained(made)
    return made


@torch.inference_mode()
@pytest.mark.parametrize("frames", [3, 200, 431])
def test_it_is_the_published_network(frames: int) -> None:
    theirs = as_trained(published("chatterbox.models.s3gen.xvector").CAMPPlus())
    ours = SpeakerEmbedding(load_preset("8b").speaker_embedding).eval()
    ours.load_state_dict(theirs.state_dict())
    clip = fbank(frames, 80)
    expected = theirs(clip - clip.mean(1, keepdim=True))
    torch.testing.assert_close(ours(clip), expected, atol=1e-4, rtol=0)
    assert (ours(fbank(frames, 80, seed=1)) - expected).abs().max() > 0.5


@torch.inference_mode()
def test_clips_of_a_batch_do_not_influence_one_another() -> None:
    embeds, lengths = small(), [611, 3, 200, 201, 407]
    batch = torch.full((5, 611, 16), torch.nan)
    for row, length in enumerate(lengths):
        batch[row, :length] = fbank(length, seed=row)
    together = embeds(batch, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        alone = embeds(fbank(length, seed=row))[0]
        torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=0)
    assert (together[0] - together[4]).abs().max() > 0.1


@torch.inference_mode()
def test_how_loud_a_recording_is_does_not_matter() -> None:
    """A gain adds the same to every log energy."""
    embeds, clip = small(), fbank(150)
    torch.testing.assert_close(embeds(clip + 4), embeds(clip), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("frames", [1, 2])
def test_too_short_a_clip_is_refused(frames: int) -> None:
    message = f"a clip has {frames} frames of 10 ms: .* fewer than 3"
    with pytest.raises(ValueError, match=message):
        small()(fbank(frames))
    with pytest.raises(ValueError, match=message):
        small()(fbank(100).repeat(2, 1, 1), torch.tensor([100, frames]))


def test_a_length_beyond_the_clip_is_refused() -> None:
    with pytest.raises(ValueError, match="a length is 101: there are 100 frames"):
        small()(fbank(100), torch.tensor([101]))


def test_padding_does_not_get_into_batch_normalisation() -> None:
    with pytest.raises(ValueError, match="clips have 60 to 100 of 100 frames: cut all clips"):
        small().train()(fbank(100).repeat(2, 1, 1), torch.tensor([100, 60]))


def test_mel_bins_must_be_halved_three_times() -> None:
    with pytest.raises(ValueError, match="mel_bins is 20: it must be a multiple of 8"):
        SpeakerEmbeddingConfig(
            mel_bins=20, width=1, growth=1, initial_channels=1, bottleneck_scale=1, blocks=(1,)
        )


def test_silence_trains_to_no_nan() -> None:
    embeds = small().train()
    embeds(torch.zeros(2, 50, 16)).sum().backward()
    assert all(torch.isfinite(value.grad).all() for value in embeds.parameters())  # type: ignore[arg-type]


def test_training_tells_speakers_apart() -> None:
    torch.manual_seed(0)
    embeds, loss = SpeakerEmbedding(SMALL), AngularMarginLoss(12, speakers=3)
    generator = torch.Generator().manual_seed(0)
    voices = torch.randn(3, 1, 16, generator=generator)

    def clips() -> Tensor:
        """A voice shows in which bins move together."""
        beat = torch.randn(3, 30, 1, generator=generator)
        return voices * beat + 0.3 * torch.randn(3, 30, 16, generator=generator)

    optimiser = torch.optim.Adam([*embeds.parameters(), *loss.parameters()], lr=0.01)
    speakers = torch.arange(3).repeat(4)
    first = None
    for _ in range(40):
        value = loss(embeds(torch.cat([clips() for _ in range(4)])), speakers)
        first = first or value.item()
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
    assert value.item() < first / 4
    embeds.eval()
    one, two = (nn.functional.normalize(embeds(clips())) for _ in range(2))
    assert (one @ two.T).argmax(-1).tolist() == [0, 1, 2]


def test_the_loss_adds_its_margin_to_the_right_angle() -> None:
    loss = AngularMarginLoss(2, speakers=2, margin=0.3, scale=10.0)
    loss.weight.data = torch.tensor([[2.0, 0.0], [0.0, 0.5]])
    for angle in [0.0, 0.4, 1.5]:
        embedding = 7 * torch.tensor([[math.cos(angle), math.sin(angle)]])
        logits = 10 * torch.tensor([[math.cos(angle + 0.3), math.cos(angle - math.pi / 2)]])
        expected = nn.functional.cross_entropy(logits, torch.tensor([0]))
        torch.testing.assert_close(
            loss(embedding, torch.tensor([0])), expected, atol=1e-2, rtol=1e-3
        )


def test_the_loss_falls_all_the_way_to_the_right_direction() -> None:
    loss = AngularMarginLoss(3, speakers=2, margin=0.5)
    loss.weight.data = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    angles = torch.linspace(0, math.pi, 60)
    around = torch.stack((angles.cos(), angles.sin(), torch.zeros(60)), dim=-1)
    around.requires_grad_()
    losses = torch.stack([loss(row[None], torch.tensor([0])) for row in around])
    assert (losses.diff()[10:] > 0).all()
    losses.sum().backward()
    assert around.grad is not None
    assert torch.isfinite(around.grad).all()


@pytest.mark.parametrize(("preset", "least", "most"), [("8b", 6.5, 7.5), ("mini", 0.2, 0.6)])
def test_a_preset_has_its_size(preset: str, least: float, most: float) -> None:
    with torch.device("meta"):
        embeds = SpeakerEmbedding(load_preset(preset).speaker_embedding)
    millions = sum(parameter.numel() for parameter in embeds.parameters()) / 1e6
    assert least <= millions <= most
