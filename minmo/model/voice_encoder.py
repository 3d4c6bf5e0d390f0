"""The voice encoder: samples in, frames for the input projector out.

What every family of encoders offers. Each was trained on whole clips; each streams under a mask of
blocks, with the same weights.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from minmo.model.block_streaming import EncoderState
from minmo.model.moonshine_encoder import MoonshineEncoder, MoonshineEncoderConfig
from minmo.model.sense_voice_encoder import SenseVoiceEncoder, SenseVoiceEncoderConfig
from minmo.model.whisper_encoder import WhisperEncoder, WhisperEncoderConfig

VoiceEncoderConfig: TypeAlias = (
    MoonshineEncoderConfig | WhisperEncoderConfig | SenseVoiceEncoderConfig
)


class VoiceEncoder(Protocol):
    """Encodes speech at 16 kHz, as a whole or as it comes in.

    Attributes:
        sample_rate: 16,000 Hz.
        samples_per_frame: from one frame to the next.
        width: channels of a frame.
        look_ahead: samples behind a block that must be there before it can be encoded.
    """

    sample_rate: int
    samples_per_frame: int
    width: int
    look_ahead: int

    @property
    def block_samples(self) -> int:
        """Samples that one block of the stream stands for."""

    @property
    def shortest_clip(self) -> int:
        """Samples that one frame needs."""

    def __call__(self, samples: Tensor) -> Tensor:
        """`forward`."""

    def forward(self, samples: Tensor) -> Tensor:
        """Whole clips as the weights were trained: every frame sees all others.

        Args:
            samples: `[batch, samples]`, -1 to 1.

        Returns:
            `[batch, frames, width]`.
        """

    def forward_causal(self, samples: Tensor) -> Tensor:
        """Whole clips under the mask of the stream; equals what `step` and `flush` give.

        Args:
            samples: `[batch, samples]`, -1 to 1.

        Returns:
            `[batch, frames, width]`.
        """

    def initial_state(
        self, slots: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> EncoderState:
        """The state of streams that start."""

    def step(self, samples: Tensor, lengths: Tensor, state: EncoderState) -> tuple[Tensor, Tensor]:
        """Takes the next samples of each slot's stream.

        Args:
            samples: `[slots, samples]`, any number, so many in every call for fixed shapes.
            lengths: `[slots]`, how many of them are there.
            state: changed in place.

        Returns:
            `[slots, ceil(samples / block_samples) * block_frames, width]`, and for each slot how
            many of these frames are there, `[slots]`.
        """

    def flush(self, ending: Tensor, state: EncoderState) -> tuple[Tensor, Tensor]:
        """Ends the streams in some slots, which are then free for others.

        Args:
            ending: `[slots]`, true for those.
            state: changed in place.

        Returns:
            `[slots, block_frames, width]`, the frames that waited for the rest of their block, and
            for each slot how many there are, `[slots]`.
        """


def build_voice_encoder(config: VoiceEncoderConfig) -> VoiceEncoder:
    """The voice encoder of a preset, with random weights."""
    match config:
        case MoonshineEncoderConfig():
            return MoonshineEncoder(config)
        case WhisperEncoderConfig():
            return WhisperEncoder(config)
        case SenseVoiceEncoderConfig():
            return SenseVoiceEncoder(config)
