"""Whisper's encoder: samples in, one vector for every 20 ms out.

Log-mel spectrum, two convolutions, a Transformer with sinusoidal positions. Parameters are named as
in `transformers`, without the prefix `model.encoder.`.

Whisper hears clips padded to 30 s, whose spectrum is cut 80 dB below the clip's loudest value.
Under the mask of the stream this value is the loudest up to the end of a frame's block, and
positions count on beyond 30 s. A frame sees 520 samples before its own and 200 behind them, so a
block is encoded 12.5 ms behind its end; what follows a stream's end is silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minmo.model.block_streaming import (
    BlockStreamingEncoder,
    Context,
    Count,
    KeyValueRing,
    Whole,
    Windows,
    look,
)
from minmo.model.features import WhisperLogMel
from minmo.model.sinusoidal import sinusoids

LONGEST_CLIP_SAMPLES = 480_000
"""30 s, to which Whisper pads."""
_LONGEST_CLIP_FRAMES = 1500


@dataclass(frozen=True)
class WhisperEncoderConfig:
    """Sizes of Whisper's encoder.

    Attributes:
        mel_bins: of the spectrum.
        width: channels of a frame.
        mlp_width: inner channels of a layer's MLP.
        layers: Transformer layers.
        heads: attention heads.
        block_frames: frames of a block of the stream; 8 are 160 ms.
        left_blocks: blocks before its own that a frame of the stream sees.
    """

    mel_bins: int
    width: int
    mlp_width: int
    layers: int
    heads: int
    block_frames: int = 8
    left_blocks: int = 24

    @classmethod
    def from_checkpoint(cls, config: Mapping[str, Any]) -> Self:
        """Reads the `config.json` of a Whisper checkpoint."""
        positions = int(config["max_source_positions"])
        if positions != _LONGEST_CLIP_FRAMES:
            raise ValueError(
                f"max_source_positions is {positions}: every Whisper has {_LONGEST_CLIP_FRAMES}"
            )
        return cls(
            mel_bins=int(config["num_mel_bins"]),
            width=int(config["d_model"]),
            mlp_width=int(config["encoder_ffn_dim"]),
            layers=int(config["encoder_layers"]),
            heads=int(config["encoder_attention_heads"]),
        )


class WhisperEncoder(BlockStreamingEncoder):
    """Log-mel spectrum, convolutions and Transformer."""

    samples_per_frame = 320
    # Two frames of the spectrum before the first and one behind the last, and half a window.
    look_behind = 520
    look_ahead = 200
    shortest_clip = samples_per_frame
    # The loudest value, counted from silence.
    statistics = 1

    def __init__(self, config: WhisperEncoderConfig) -> None:
        super().__init__(config.width, config.block_frames, config.left_blocks)
        self.config = config
        width = config.width
        self.log_mel = WhisperLogMel(config.mel_bins)
        self.conv1 = nn.Conv1d(config.mel_bins, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(_LONGEST_CLIP_FRAMES, width)
        self.embed_positions.weight = nn.Parameter(
            sinusoids(torch.arange(_LONGEST_CLIP_FRAMES), width).float(), requires_grad=False
        )
        self.layers = nn.ModuleList([WhisperEncoderLayer(config) for _ in range(config.layers)])
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, samples: Tensor, padded: bool = True) -> Tensor:
        """Encodes whole clips: every frame sees all of them.

        Args:
            samples: `[batch, samples]` at 16 kHz, -1 to 1; at most 30 s.
            padded: whether clips are padded to 30 s, as Whisper was trained and as its decoder
                expects. Without it the time that this takes goes with the clip's length.

        Returns:
            `[batch, 1500, width]`, or `[batch, samples // 320, width]` if not padded; frame i
            stands for samples `320 i` to `320 (i + 1)`.
        """
        length = samples.shape[-1]
        if length > LONGEST_CLIP_SAMPLES:
            raise ValueError(
                f"a clip of {length} samples is too long: Whisper takes {LONGEST_CLIP_SAMPLES} "
                "(30 s), cut it"
            )
        count = self._counted(length)
        if padded:
            samples = F.pad(samples, (0, LONGEST_CLIP_SAMPLES - length))
            count = _LONGEST_CLIP_FRAMES
        mel = self.log_mel(samples).to(self.conv1.weight.dtype).transpose(1, 2)
        hidden = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).transpose(1, 2)[:, :count]
        return self._layers(hidden + self.embed_positions.weight[:count], Whole())

    def frame_counts(self, samples: Count) -> Count:
        """Frames that so many samples make: those whose own samples are all there."""
        return samples // self.samples_per_frame

    def analyse(self, windows: Windows) -> tuple[Tensor, Tensor]:
        """log10 of the power, `[batch, blocks, rows, mel_bins]`, and the loudest of it."""
        samples = windows.samples
        # A stream's start is mirrored, as a clip's is.
        start, half = self.look_behind, self.log_mel.fft_size // 2
        mirrored = samples.clone()
        mirrored[..., start - half : start] = samples[..., start + 1 : start + 1 + half].flip(-1)
        samples = mirrored.where(windows.first[..., None], samples)
        powers = self.log_mel.log_powers(samples)
        loudness = powers.amax(-1) - self.log_mel.silence
        loudness = loudness.masked_fill(self._before_start(windows, loudness), 0)
        return powers, loudness.amax(-1, keepdim=True).to(torch.float64)

    def accumulate(self, added: Tensor) -> Tensor:
        """The loudest of all blocks up to each."""
        return added.cummax(1).values

    def embed_blocks(self, analysed: Tensor, statistics: Tensor, windows: Windows) -> Tensor:
        """Cuts, scales and convolves: `[batch, blocks, block_frames, width]`."""
        loudest = (statistics + self.log_mel.silence).to(analysed.dtype)
        mel = self.log_mel.scaled(analysed, loudest[..., None])
        outside = self._before_start(windows, mel[..., 0])[..., None]
        rows = mel.masked_fill(outside, 0).flatten(0, 1).to(self.conv1.weight.dtype)
        hidden = F.gelu(F.conv1d(rows.transpose(1, 2), self.conv1.weight, self.conv1.bias))
        # The first row is the one before the block; a clip's start is padded with zeros.
        before = windows.first.expand(statistics.shape[:2]).reshape(-1, 1, 1)
        hidden = torch.cat((hidden[..., :1].masked_fill(before, 0), hidden[..., 1:]), dim=-1)
        hidden = F.gelu(F.conv1d(hidden, self.conv2.weight, self.conv2.bias, stride=2))
        return hidden.transpose(1, 2).reshape(*statistics.shape[:2], -1, self.width)

    def transform(self, frames: Tensor, positions: Tensor, context: Context) -> Tensor:
        """Positions and the Transformer: `[batch, frames, width]` to the same."""
        return self._layers(frames + sinusoids(positions, self.width).to(frames), context)

    def layer_state(
        self, slots: int, device: torch.device | None, dtype: torch.dtype
    ) -> list[KeyValueRing]:
        """Empty keys and values of each layer."""
        config = self.config
        return self.key_value_rings(config.layers, config.heads, slots, device, dtype)

    def _layers(self, frames: Tensor, context: Context) -> Tensor:
        for number, layer in enumerate(self.layers):
            frames = layer(frames, context, number)
        encoded: Tensor = self.layer_norm(frames)
        return encoded

    @staticmethod
    def _before_start(windows: Windows, rows: Tensor) -> Tensor:
        """`[batch, blocks, rows]`, true for the two rows before a stream's first one."""
        outside = torch.arange(rows.shape[2], device=rows.device) < 2
        return windows.first[..., None] & outside


class WhisperEncoderLayer(nn.Module):
    """Attention, then an MLP; both behind a layer norm."""

    def __init__(self, config: WhisperEncoderConfig) -> None:
        super().__init__()
        self.self_attn_layer_norm = nn.LayerNorm(config.width)
        self.self_attn = WhisperEncoderAttention(config)
        self.final_layer_norm = nn.LayerNorm(config.width)
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.width)

    def forward(self, hidden: Tensor, context: Context, number: int) -> Tensor:
        """Reads frames.

        Args:
            hidden: `[batch, frames, width]`.
            context: what they see.
            number: of the layer.

        Returns:
            `[batch, frames, width]`.
        """
        hidden = hidden + self.self_attn(self.self_attn_layer_norm(hidden), context, number)
        changed: Tensor = self.fc2(F.gelu(self.fc1(self.final_layer_norm(hidden))))
        return hidden + changed


class WhisperEncoderAttention(nn.Module):
    """Self-attention whose keys have no bias."""

    def __init__(self, config: WhisperEncoderConfig) -> None:
        super().__init__()
        if config.width % config.heads:
            raise ValueError(
                f"width is {config.width}: it must be a multiple of {config.heads} heads"
            )
        self.heads = config.heads
        self.k_proj = nn.Linear(config.width, config.width, bias=False)
        self.v_proj = nn.Linear(config.width, config.width)
        self.q_proj = nn.Linear(config.width, config.width)
        self.out_proj = nn.Linear(config.width, config.width)

    def forward(self, hidden: Tensor, context: Context, number: int) -> Tensor:
        """`[batch, frames, width]` to the same; see `WhisperEncoderLayer.forward`."""
        query, key, value = (
            project(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = look(query, *context.extend(number, key, value), context.mask)
        merged: Tensor = self.out_proj(attended.transpose(1, 2).flatten(-2))
        return merged
