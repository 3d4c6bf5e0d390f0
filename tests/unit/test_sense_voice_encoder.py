"""SenseVoice's encoder computes what FunASR's does, whole; streamed, what it does whole."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from minmo.model.features import stack_frames
from minmo.model.sense_voice_encoder import (
    Recognition,
    SenseVoiceEncoder,
    SenseVoiceEncoderConfig,
    collapse,
)
from tests.listening import recordings
from tests.published import published
from tests.streaming_encoders import (
    check_an_hour,
    check_any_chunking,
    check_endings,
    check_left_context,
)

TOLERANCE = 1e-4
CLIP = torch.from_numpy(recordings()[0].samples)
SMALL = SenseVoiceEncoderConfig(
    mel_bins=8,
    width=32,
    mlp_width=64,
    layers=3,
    text_layers=2,
    heads=2,
    vocabulary_size=24,
    block_frames=3,
    left_blocks=2,
)


def small(**changed: int) -> SenseVoiceEncoder:
    torch.manual_seed(2)
    encoder = SenseVoiceEncoder(replace(SMALL, **changed))
    with torch.no_grad():
        for value in encoder.parameters():
            value.mul_(1.5)
        # About what the published shift and scale make of speech.
        encoder.feature_shift.fill_(-12.0)
        encoder.feature_scale.fill_(0.2)
    return encoder.eval()


def reference() -> nn.Module:
    model = published("funasr.models.sense_voice.model")
    made: nn.Module = model.SenseVoiceEncoderSmall(
        input_size=SMALL.feature_width,
        output_size=32,
        attention_heads=2,
        linear_units=64,
        num_blocks=3,
        tp_blocks=2,
        kernel_size=11,
        sanm_shfit=0,
    )
    return made.eval()


def asked(encoder: SenseVoiceEncoder, rows: list[int], clip: Tensor) -> Tensor:
    """Queries and joined frames, as FunASR puts them together."""
    joined = stack_frames(encoder.fbank(clip), 7, 6)
    joined = (joined + encoder.feature_shift) * encoder.feature_scale
    return torch.cat((encoder.embed.weight[None, rows], joined), dim=1)


@torch.inference_mode()
@pytest.mark.parametrize("samples", [400, 16_000, 40_123])
def test_frames_equal_those_of_funasr(samples: int) -> None:
    encoder, theirs = small(), reference()
    theirs.load_state_dict(encoder.encoder.state_dict())
    clip = CLIP[None, :samples]
    speech = asked(encoder, [4, 1, 2, 14], clip)
    expected, _ = theirs(speech.clone(), torch.tensor([speech.shape[1]]))
    found = encoder(clip, language="en", written=True)
    assert found.shape == (1, encoder.frames_of(samples), 32)
    torch.testing.assert_close(found, expected[:, 4:], atol=TOLERANCE, rtol=0)


def test_a_state_dict_carries_the_names_of_funasr() -> None:
    ours = {name: tuple(value.shape) for name, value in small().state_dict().items()}
    assert ours.pop("feature_shift") == ours.pop("feature_scale") == (56,)
    expected = {f"encoder.{name}": tuple(v.shape) for name, v in reference().state_dict().items()}
    expected |= {"embed.weight": (16, 56), "ctc.ctc_lo.weight": (24, 32), "ctc.ctc_lo.bias": (24,)}
    assert ours == expected


@torch.inference_mode()
def test_words_are_the_most_probable_classes_as_funasr_reads_them() -> None:
    encoder, theirs = small(), reference()
    theirs.load_state_dict(encoder.encoder.state_dict())
    clip = CLIP[None, :40_000]
    speech = asked(encoder, [0, 1, 2, 15], clip)
    classes = encoder.ctc.ctc_lo(theirs(speech, torch.tensor([speech.shape[1]]))[0])[0].argmax(-1)
    path = torch.unique_consecutive(classes[4:])
    found = encoder.recognise(clip)
    assert found == [Recognition(classes[:4].tolist(), path[path != 0].tolist())]
    assert len(found[0].tokens) > 1


def test_repeats_are_one_token_unless_a_blank_stands_between() -> None:
    assert collapse(torch.tensor([0, 5, 5, 0, 5, 7, 7, 0, 0])) == [5, 5, 7]
    assert collapse(torch.zeros(0, dtype=torch.long)) == []


def test_any_chunking_gives_what_the_whole_clip_gives() -> None:
    check_any_chunking(small(), CLIP[:24_000].view(2, -1))


@pytest.mark.parametrize(("block_frames", "kernel_size"), [(1, 11), (7, 11), (2, 5)])
def test_blocks_may_be_shorter_or_longer_than_what_the_memory_sees(
    block_frames: int, kernel_size: int
) -> None:
    encoder = small(block_frames=block_frames, kernel_size=kernel_size)
    check_any_chunking(encoder, CLIP[: 16 * encoder.block_samples].view(2, -1))


def test_a_stream_may_end_anywhere() -> None:
    check_endings(small(), CLIP[:40_000].view(2, -1))


def test_an_hour_takes_no_more_memory_than_a_second() -> None:
    check_an_hour(small(), CLIP[None, :40_000])


def test_left_context_is_bounded() -> None:
    # The memory reaches back too, five frames a layer: here one frame is one block.
    encoder = small(block_frames=5, left_blocks=1, layers=2, text_layers=1)
    check_left_context(encoder, CLIP[None, :40_000], layers=3)


@torch.inference_mode()
def test_nothing_behind_a_block_is_seen() -> None:
    encoder, clip = small(), CLIP[None, :20_000]
    changed = clip.clone()
    changed[:, 3 * encoder.block_samples :] = 0
    before, after = encoder.forward_causal(clip), encoder.forward_causal(changed)
    torch.testing.assert_close(before[:, :9], after[:, :9], atol=1e-6, rtol=0)
    assert (before[:, 9:] - after[:, 9:]).abs().max() > 1e-3


@torch.inference_mode()
def test_one_block_over_all_of_a_clip_is_the_clip_to_frames_of_one_layer() -> None:
    # In a second layer the queries differ, which in a stream see no speech.
    encoder, clip = small(block_frames=40, layers=1, text_layers=0), CLIP[None, :16_123]
    torch.testing.assert_close(encoder.forward_causal(clip), encoder(clip), atol=1e-5, rtol=0)


def test_it_trains_under_the_mask_of_the_stream() -> None:
    encoder = small()
    encoder.forward_causal(CLIP[None, :12_000]).square().mean().backward()
    missing = {name for name, value in encoder.named_parameters() if value.grad is None}
    assert missing == {"ctc.ctc_lo.weight", "ctc.ctc_lo.bias"}


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="399 samples is too short for one frame: pad it to 400"):
        small()(torch.zeros(1, 399))
    with pytest.raises(ValueError, match="language is 'fr': SenseVoice knows auto, zh, en"):
        small()(torch.zeros(1, 400), language="fr")  # type: ignore[arg-type]


def test_the_published_sizes_are_those_of_sense_voice_small() -> None:
    with torch.device("meta"):
        made = SenseVoiceEncoder(SenseVoiceEncoderConfig())
    assert round(sum(value.numel() for value in made.parameters()) / 1e6) == 234
