"""The voice encoder: samples in, one vector for every 24 ms out (Moonshine's encoder).

Three convolutions over the raw waveform, then a Transformer with rotary positions. Parameters are
named as in `transformers`, without the prefix `model.encoder.`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn
from torch.nn import functional as F

from minmo.model.attention import FusedProjections
from minmo.model.interleaved_rotary import rotary_table, rotate

SAMPLE_RATE_HZ = 16_000
SAMPLES_PER_FRAME = 384
"""Hop of the three strides, 64 * 3 * 2: 24 ms."""
SAMPLES_SEEN_PER_FRAME = 895
"""A frame sees this many samples from its first one on: its own and the next 511."""


@dataclass(frozen=True)
class VoiceEncoderConfig:
    """Sizes of the voice encoder."""

    width: int
    mlp_width: int
    layers: int
    heads: int
    rotary_dim: int
    rotary_theta: float

    @classmethod
    def from_checkpoint(cls, config: Mapping[str, Any]) -> Self:
        """Reads the `config.json` of a Moonshine checkpoint."""
        heads = int(config["encoder_num_attention_heads"])
        rope = config["rope_parameters"]
        head_dim = int(config["hidden_size"]) // heads
        return cls(
            width=int(config["hidden_size"]),
            mlp_width=int(config["intermediate_size"]),
            layers=int(config["encoder_num_hidden_layers"]),
            heads=heads,
            rotary_dim=int(head_dim * float(rope["partial_rotary_factor"])),
            rotary_theta=float(rope["rope_theta"]),
        )


def frames_of(samples: int) -> int:
    """Frames that the encoder makes of this many samples."""
    return max(0, (samples - SAMPLES_SEEN_PER_FRAME) // SAMPLES_PER_FRAME + 1)


class VoiceEncoder(nn.Module):
    """Encodes whole clips; its first normalisation is over the clip, so clips are not padded."""

    def __init__(self, config: VoiceEncoderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.conv1 = nn.Conv1d(1, width, kernel_size=127, stride=64, bias=False)
        self.groupnorm = nn.GroupNorm(num_groups=1, num_channels=width, eps=1e-5)
        self.conv2 = nn.Conv1d(width, 2 * width, kernel_size=7, stride=3)
        self.conv3 = nn.Conv1d(2 * width, width, kernel_size=3, stride=2)
        self.layers = nn.ModuleList([VoiceEncoderLayer(config) for _ in range(config.layers)])
        self.layer_norm = nn.LayerNorm(width, bias=False)

    def forward(self, samples: Tensor) -> Tensor:
        """Encodes clips of one length.

        Args:
            samples: `[batch, samples]` at 16 kHz, -1 to 1; at least `SAMPLES_SEEN_PER_FRAME`.

        Returns:
            `[batch, frames, width]`; frame i stands for samples `384 i` to `384 (i + 1)`.
        """
        if samples.shape[-1] < SAMPLES_SEEN_PER_FRAME:
            raise ValueError(
                f"a clip of {samples.shape[-1]} samples is too short for one frame: "
                f"pad it to {SAMPLES_SEEN_PER_FRAME}"
            )
        hidden = F.tanh(self.conv1(samples[:, None]))
        hidden = F.gelu(self.conv2(self.groupnorm(hidden)))
        hidden = F.gelu(self.conv3(hidden)).transpose(1, 2).contiguous()
        table = rotary_table(hidden.shape[1], self.config.rotary_dim, self.config.rotary_theta)
        table = table.to(hidden)
        for layer in self.layers:
            hidden = layer(hidden, table)
        encoded: Tensor = self.layer_norm(hidden)
        return encoded


class VoiceEncoderLayer(nn.Module):
    """Attention over the whole clip, then an MLP; both behind a layer norm."""

    def __init__(self, config: VoiceEncoderConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.width, bias=False)
        self.self_attn = FusedProjections(config.width, config.heads)
        self.post_attention_layernorm = nn.LayerNorm(config.width, bias=False)
        self.mlp = VoiceEncoderMlp(config)

    def forward(self, hidden: Tensor, table: Tensor) -> Tensor:
        """`[batch, frames, width]` to the same; `table` is `rotary_table` of the frames."""
        joined = self.self_attn.split_heads(self.input_layernorm(hidden))
        query, key = rotate(joined[:2], table)
        attended = F.scaled_dot_product_attention(query, key, joined[2])
        hidden = hidden + self.self_attn.merge_heads(attended)
        changed: Tensor = self.mlp(self.post_attention_layernorm(hidden))
        return hidden + changed


class VoiceEncoderMlp(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, config: VoiceEncoderConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.width)

    def forward(self, hidden: Tensor) -> Tensor:
        """`[batch, frames, width]` to the same."""
        changed: Tensor = self.fc2(F.gelu(self.fc1(hidden)))
        return changed
