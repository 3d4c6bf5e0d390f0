"""Moonshine's encoder: samples in, one vector for every 24 ms out.

Three convolutions over the raw waveform, then a Transformer with rotary positions. Parameters are
named as in `transformers`, without the prefix `model.encoder.`.

Moonshine normalises the first convolution's output over the whole clip and attends to all of it.
Under the mask of the stream the normalisation uses everything heard up to the end of a frame's
block, and a frame sees its own block and a bounded number before it. A frame sees 895 samples from
its first one on, so a block is encoded 511 samples, 32 ms, behind its end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minmo.model.attention import FusedProjections
from minmo.model.block_streaming import (
    BlockStreamingEncoder,
    Context,
    Count,
    KeyValueRing,
    Whole,
    Windows,
    look,
)
from minmo.model.interleaved_rotary import rotary_rows, rotate
from minmo.model.streaming import is_there

SAMPLES_PER_FRAME = 384
"""Hop of the three strides, 64 * 3 * 2: 24 ms."""
SAMPLES_SEEN_PER_FRAME = 895
"""A frame sees this many samples from its first one on: its own and the next 511."""

# A frame is made of 13 outputs of the first convolution and the next one starts 6 later.
_ROWS_PER_FRAME = 6
_ROWS_SHARED = 7


@dataclass(frozen=True)
class MoonshineEncoderConfig:
    """Sizes of Moonshine's encoder.

    Attributes:
        width: channels of a frame.
        mlp_width: inner channels of a layer's MLP.
        layers: Transformer layers.
        heads: attention heads.
        rotary_dim: channels of a head that are turned by position.
        rotary_theta: base of the rotary frequencies.
        block_frames: frames of a block of the stream; 6 are 144 ms.
        left_blocks: blocks before its own that a frame of the stream sees.
    """

    width: int
    mlp_width: int
    layers: int
    heads: int
    rotary_dim: int
    rotary_theta: float
    block_frames: int = 6
    left_blocks: int = 28

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


class MoonshineEncoder(BlockStreamingEncoder):
    """Its first normalisation is over the clip, so clips are not padded."""

    samples_per_frame = SAMPLES_PER_FRAME
    look_behind = 0
    look_ahead = SAMPLES_SEEN_PER_FRAME - SAMPLES_PER_FRAME
    shortest_clip = SAMPLES_SEEN_PER_FRAME
    # Number, sum and sum of squares of the first convolution's outputs.
    statistics = 3

    def __init__(self, config: MoonshineEncoderConfig) -> None:
        super().__init__(config.width, config.block_frames, config.left_blocks)
        self.config = config
        width = config.width
        self.conv1 = nn.Conv1d(1, width, kernel_size=127, stride=64, bias=False)
        self.groupnorm = nn.GroupNorm(num_groups=1, num_channels=width, eps=1e-5)
        self.conv2 = nn.Conv1d(width, 2 * width, kernel_size=7, stride=3)
        self.conv3 = nn.Conv1d(2 * width, width, kernel_size=3, stride=2)
        self.layers = nn.ModuleList([MoonshineEncoderLayer(config) for _ in range(config.layers)])
        self.layer_norm = nn.LayerNorm(width, bias=False)

    def forward(self, samples: Tensor) -> Tensor:
        """Encodes clips of one length as they were trained: every frame sees all of them.

        Args:
            samples: `[batch, samples]` at 16 kHz, -1 to 1; at least `SAMPLES_SEEN_PER_FRAME`.

        Returns:
            `[batch, frames, width]`; frame i stands for samples `384 i` to `384 (i + 1)`.
        """
        count = self._counted(samples.shape[-1])
        rows = F.tanh(self.conv1(samples[:, None].to(self.conv1.weight.dtype)))
        frames = self._downsample(self.groupnorm(rows))
        positions = torch.arange(count, device=samples.device)[None]
        return self.transform(frames, positions, Whole())

    def frame_counts(self, samples: Count) -> Count:
        """Frames that so many samples make; numbers below 1 mean none."""
        return (samples - SAMPLES_SEEN_PER_FRAME) // SAMPLES_PER_FRAME + 1

    def analyse(self, windows: Windows) -> tuple[Tensor, Tensor]:
        """The first convolution, `[batch, blocks, rows, width]`, and what normalises it."""
        batch, blocks, length = windows.samples.shape
        samples = windows.samples.reshape(-1, 1, length).to(self.conv1.weight.dtype)
        rows = F.tanh(self.conv1(samples)).transpose(1, 2)
        rows = rows.reshape(batch, blocks, -1, self.width)
        frames = self.frame_counts(windows.there).clamp(0, self.block_frames)
        # The rows that the block before has counted already are not counted again.
        counted = (frames > 0) * (_ROWS_PER_FRAME * frames + _ROWS_SHARED)
        new = is_there(counted.flatten(), rows.shape[2]).view(*counted.shape, -1)
        shared = torch.arange(rows.shape[2], device=rows.device) < _ROWS_SHARED
        new = new & (windows.first[..., None] | ~shared)
        weight = new.to(torch.float64)
        # Sums in double precision, without a copy of all rows in it.
        exact = rows.float()
        total = exact.sum(-1, dtype=torch.float64)
        squares = exact.square().sum(-1, dtype=torch.float64)
        added = torch.stack(
            (
                self.width * weight.sum(-1).expand(batch, blocks),
                (weight * total).sum(-1),
                (weight * squares).sum(-1),
            ),
            dim=-1,
        )
        return rows, added

    def embed_blocks(self, analysed: Tensor, statistics: Tensor, windows: Windows) -> Tensor:
        """Normalises by all that was heard and downsamples: `[batch, blocks, frames, width]`."""
        number, total, squares = statistics.unbind(-1)
        mean = total / number.clamp(min=1)
        variance = (squares / number.clamp(min=1) - mean.square()).clamp(min=0)
        scale = (variance + self.groupnorm.eps).rsqrt()
        centred = (analysed - mean.float()[..., None, None]) * scale.float()[..., None, None]
        norm = self.groupnorm
        normalised = centred.to(analysed.dtype) * norm.weight + norm.bias
        frames = self._downsample(normalised.flatten(0, 1).transpose(1, 2))
        return frames.view(*statistics.shape[:2], *frames.shape[1:])

    def transform(self, frames: Tensor, positions: Tensor, context: Context) -> Tensor:
        """The Transformer: `[batch, frames, width]` to the same."""
        config = self.config
        table = rotary_rows(positions, config.rotary_dim, config.rotary_theta).to(frames)
        for number, layer in enumerate(self.layers):
            frames = layer(frames, table, context, number)
        encoded: Tensor = self.layer_norm(frames)
        return encoded

    def layer_state(
        self, slots: int, device: torch.device | None, dtype: torch.dtype
    ) -> list[KeyValueRing]:
        """Empty keys and values of each layer."""
        config = self.config
        return self.key_value_rings(config.layers, config.heads, slots, device, dtype)

    def _downsample(self, rows: Tensor) -> Tensor:
        """Normalised outputs of the first convolution, channels first, to frames."""
        hidden = F.gelu(self.conv3(F.gelu(self.conv2(rows))))
        return hidden.transpose(1, 2).contiguous()


class MoonshineEncoderLayer(nn.Module):
    """Attention, then an MLP; both behind a layer norm."""

    def __init__(self, config: MoonshineEncoderConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.width, bias=False)
        self.self_attn = FusedProjections(config.width, config.heads)
        self.post_attention_layernorm = nn.LayerNorm(config.width, bias=False)
        self.mlp = MoonshineEncoderMlp(config)

    def forward(self, hidden: Tensor, table: Tensor, context: Context, number: int) -> Tensor:
        """Reads frames.

        Args:
            hidden: `[batch, frames, width]`.
            table: `rotary_rows` of the frames.
            context: what they see.
            number: of the layer.

        Returns:
            `[batch, frames, width]`.
        """
        joined = self.self_attn.split_heads(self.input_layernorm(hidden))
        query, key = rotate(joined[:2], table)
        keys, values = context.extend(number, key, joined[2])
        attended = look(query, keys, values, context.mask)
        hidden = hidden + self.self_attn.merge_heads(attended)
        changed: Tensor = self.mlp(self.post_attention_layernorm(hidden))
        return hidden + changed


class MoonshineEncoderMlp(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, config: MoonshineEncoderConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.width)

    def forward(self, hidden: Tensor) -> Tensor:
        """`[batch, frames, width]` to the same."""
        changed: Tensor = self.fc2(F.gelu(self.fc1(hidden)))
        return changed
