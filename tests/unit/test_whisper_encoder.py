"""Whisper's encoder computes what transformers' does, whole; streamed, what it does whole."""

import pytest
import torch
from torch import Tensor
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

from minmo.model.whisper_encoder import WhisperEncoder, WhisperEncoderConfig
from tests.listening import recordings
from tests.streaming_encoders import (
    check_an_hour,
    check_any_chunking,
    check_endings,
    check_left_context,
)

TOLERANCE = 1e-4
CLIP = torch.from_numpy(recordings()[0].samples)


@pytest.fixture(scope="module")
def reference() -> WhisperModel:
    config = WhisperConfig(
        vocab_size=60,
        num_mel_bins=16,
        d_model=32,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        init_std=0.2,
    )
    torch.manual_seed(0)
    return WhisperModel(config).eval()


@pytest.fixture(scope="module")
def encoder(reference: WhisperModel) -> WhisperEncoder:
    config = WhisperEncoderConfig.from_checkpoint(reference.config.to_dict())
    made = WhisperEncoder(config).eval()
    made.load_state_dict(reference.encoder.state_dict())
    return made


def small(**changed: int) -> WhisperEncoder:
    sizes = {"mel_bins": 16, "width": 32, "mlp_width": 64, "layers": 2, "heads": 2}
    torch.manual_seed(1)
    encoder = WhisperEncoder(
        WhisperEncoderConfig(**sizes | {"block_frames": 4, "left_blocks": 2} | changed)
    )
    for parameter in encoder.layers.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    return encoder.eval()


def features(clip: Tensor) -> Tensor:
    extract = WhisperFeatureExtractor(feature_size=16)
    made = extract(clip.numpy(), sampling_rate=16_000, return_tensors="pt")
    found: Tensor = made.input_features
    return found


@torch.inference_mode()
@pytest.mark.parametrize("samples", [400, 16_000, 50_123, 480_000])
def test_frames_equal_those_of_transformers(
    reference: WhisperModel, encoder: WhisperEncoder, samples: int
) -> None:
    clip = CLIP.repeat(12)[:samples]
    expected = reference.encoder(features(clip)).last_hidden_state
    found = encoder(clip[None])
    assert found.shape == (1, 1500, 32)
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_without_padding_a_full_clip_gives_the_same(encoder: WhisperEncoder) -> None:
    clip = CLIP.repeat(12)[None, :480_000]
    torch.testing.assert_close(encoder(clip, padded=False), encoder(clip), atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_without_padding_a_short_clip_has_its_own_frames_only(encoder: WhisperEncoder) -> None:
    found = encoder(CLIP[None, :16_100], padded=False)
    assert found.shape == (1, 50, 32)
    assert torch.isfinite(found).all()


@torch.inference_mode()
def test_before_attention_the_stream_is_the_clip_where_nothing_louder_follows() -> None:
    encoder = small(block_frames=50, layers=0)
    found = encoder.forward_causal(CLIP[None, :16_100])
    expected = encoder(CLIP[None, :16_100], padded=False)
    # The last frame sees what follows: silence in a stream, itself mirrored in a clip.
    torch.testing.assert_close(found[:, :-1], expected[:, :-1], atol=TOLERANCE, rtol=0)


def test_a_state_dict_carries_the_names_of_transformers(
    reference: WhisperModel, encoder: WhisperEncoder
) -> None:
    expected = {name: value.shape for name, value in reference.encoder.state_dict().items()}
    assert {name: value.shape for name, value in encoder.state_dict().items()} == expected


def test_any_chunking_gives_what_the_whole_clip_gives() -> None:
    check_any_chunking(small(), CLIP[:24_000].view(2, -1))


def test_a_stream_may_end_anywhere() -> None:
    check_endings(small(), CLIP[:32_000].view(2, -1))


def test_an_hour_takes_no_more_memory_than_a_second() -> None:
    check_an_hour(small(), CLIP[None, :32_000])


def test_left_context_is_bounded() -> None:
    encoder = small(left_blocks=1)
    # The loudest value is remembered for ever: here it is made constant.
    encoder.accumulate = torch.ones_like  # type: ignore[method-assign]
    check_left_context(encoder, CLIP[None, :24_000], layers=2)


@torch.inference_mode()
def test_what_is_loud_later_does_not_change_frames_before() -> None:
    encoder, clip = small(), 0.1 * CLIP[None, :16_000]
    louder = clip.clone()
    louder[:, 8_000:] *= 30
    before, after = encoder.forward_causal(clip), encoder.forward_causal(louder)
    same = (8_000 - encoder.look_ahead) // encoder.block_samples * encoder.block_frames
    torch.testing.assert_close(before[:, :same], after[:, :same])
    assert (before[:, same + 4 :] - after[:, same + 4 :]).abs().max() > 0.01


def test_it_trains_under_the_mask_of_the_stream() -> None:
    encoder = small()
    encoder.forward_causal(CLIP[None, :8_000]).square().mean().backward()
    without = {name for name, value in encoder.named_parameters() if value.grad is None}
    assert without == {"embed_positions.weight"}


def test_bad_clips_are_refused(encoder: WhisperEncoder) -> None:
    with pytest.raises(ValueError, match=r"480001 samples is too long: Whisper takes 480000"):
        encoder(torch.zeros(1, 480_001))
    with pytest.raises(ValueError, match="319 samples is too short for one frame: pad it to 320"):
        encoder.forward_causal(torch.zeros(1, 319))


def test_it_builds_without_memory() -> None:
    with torch.device("meta"):
        made = WhisperEncoder(
            WhisperEncoderConfig(mel_bins=128, width=1280, mlp_width=5120, layers=32, heads=20)
        )
    assert round(sum(value.numel() for value in made.parameters()) / 1e6) == 637
