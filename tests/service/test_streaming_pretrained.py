"""Pretrained weights stream as random ones do: any chunking gives what the whole clip gives."""

import pytest
import torch
from torch import Tensor

from minmo.model.moonshine_encoder import MoonshineEncoder, MoonshineEncoderConfig
from minmo.weights.load import load_state_dict, read_config
from tests.listening import recordings, weights_or_skip
from tests.streaming_encoders import (
    check_an_hour,
    check_any_chunking,
    check_bfloat16,
    check_endings,
    stream,
)

# Channels of Moonshine's frames reach 7.
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def encoder() -> MoonshineEncoder:
    folder = weights_or_skip("voice_encoder")
    made = MoonshineEncoder(MoonshineEncoderConfig.from_checkpoint(read_config(folder))).eval()
    prefix = "model.encoder."
    state = load_state_dict(folder).items()
    made.load_state_dict(
        {name.removeprefix(prefix): value for name, value in state if name.startswith(prefix)}
    )
    return made


def speech(number: int, clips: int = 1) -> Tensor:
    samples = torch.from_numpy(recordings()[number].samples)
    return samples[: len(samples) // clips * clips].view(clips, -1)


def test_moonshine_streams_in_any_chunks(encoder: MoonshineEncoder) -> None:
    check_any_chunking(encoder, speech(2, clips=3), atol=TOLERANCE)


def test_a_stream_of_moonshine_may_end_anywhere(encoder: MoonshineEncoder) -> None:
    check_endings(encoder, speech(3, clips=2), atol=TOLERANCE)


def test_moonshine_streams_for_an_hour(encoder: MoonshineEncoder) -> None:
    check_an_hour(encoder, speech(0), atol=TOLERANCE)


def test_moonshine_streams_in_bfloat16(encoder: MoonshineEncoder) -> None:
    check_bfloat16(encoder, speech(0))


@torch.inference_mode()
def test_a_stream_of_moonshine_resembles_the_whole_clip_before_it_is_trained_to(
    encoder: MoonshineEncoder,
) -> None:
    clip = speech(0)
    found = stream(encoder, clip, encoder.initial_state(1))
    whole = encoder(clip)[0, : len(found)]
    assert torch.nn.functional.cosine_similarity(found, whole, dim=-1).mean() > 0.8
