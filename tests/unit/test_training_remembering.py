"""Frames of a frozen voice encoder are made once for each clip."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from minmo.model.input_projector import InputProjector, InputProjectorConfig
from minmo.model.moonshine_encoder import MoonshineEncoder, MoonshineEncoderConfig
from minmo.model.recognition_head import RecognitionHead, RecognitionHeadConfig
from minmo.training.batches import Batch
from minmo.training.config import load_config
from minmo.training.errors import TrainingError
from minmo.training.listening import ListeningModel
from minmo.training.remembering import RememberedFrames
from minmo.training.shar import Clip
from minmo.training.speech_to_text import SpeechToText


def model() -> ListeningModel:
    torch.manual_seed(0)
    encoder = MoonshineEncoder(
        MoonshineEncoderConfig(
            width=16, mlp_width=32, layers=1, heads=2, rotary_dim=6, rotary_theta=10_000.0
        )
    )
    head = RecognitionHead(RecognitionHeadConfig(9, 24, 9), torch.randn(9, 24))
    projector = InputProjector(InputProjectorConfig(16, 16, 32, 2, 24, letters=42))
    return ListeningModel(encoder.requires_grad_(False), projector, head)


def batch(*ids: str, seconds: float = 0.5) -> Batch:
    lengths = torch.tensor([int(16_000 * seconds) + 384 * len(name) for name in ids])
    samples = torch.zeros(len(ids), int(lengths.max()))
    for row, length, name in zip(samples, lengths, ids, strict=True):
        noise = torch.Generator().manual_seed(len(name))
        row[:length] = 0.1 * torch.randn(int(length), generator=noise)
    clips = tuple(Clip(name, "", "", seconds, "", 0, 0) for name in ids)
    return Batch(samples, lengths, None, ("",) * len(ids), clips)


def test_a_clip_is_encoded_once_and_heard_as_ever() -> None:
    listening, frames = model(), RememberedFrames(1)
    encoded: list[int] = []
    encoder = listening.encoder
    whole = encoder.forward_causal

    def forward_causal(samples: torch.Tensor) -> torch.Tensor:
        encoded.append(len(samples))
        return whole(samples)

    encoder.forward_causal = forward_causal  # type: ignore[method-assign]
    first = listening.hear(*frames(listening, batch("a", "bb")))
    again = listening.hear(*frames(listening, batch("bb", "ccc", "a")))
    assert encoded == [2, 1]
    live = listening(*(getattr(batch("a", "bb"), name) for name in ("samples", "lengths")))
    for number, count in enumerate(live.frame_lengths.tolist()):
        assert int(first.frame_lengths[number]) == count
        # float16 keeps 11 bits.
        assert torch.allclose(
            first.frames[number, :count], live.frames[number, :count], atol=5e-3, rtol=2e-3
        )
    assert torch.equal(
        again.frames[2, : int(again.frame_lengths[2])],
        first.frames[0, : int(first.frame_lengths[0])],
    )


def test_what_does_not_fit_is_encoded_each_time() -> None:
    listening, frames = model(), RememberedFrames(1e-6)
    first, counts = frames(listening, batch("a"))
    second, _ = frames(listening, batch("a"))
    assert torch.equal(first, second)
    assert int(counts[0]) == first.shape[1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("optimizer.learning_rates.voice_encoder=1e-4", "no learning rate of voice_encoder"),
        ("data.silence=[0.0, 0.6]", "both ends of data.silence alike"),
        ("augmentation.speed=0.5", "augmentation.speed=0"),
    ],
)
def test_what_would_change_frames_is_refused(change: str, reason: str) -> None:
    stage, config = SpeechToText(), load_config("pre-align")
    stage.check(config)
    with pytest.raises(TrainingError, match=reason):
        stage.check(load_config("pre-align", [change]))
    options = {**config.options, "remember_mb": 0}
    stage.check(replace(load_config("pre-align", [change]), options=options))
