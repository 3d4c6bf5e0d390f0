"""SenseVoice-Small: samples in, one vector for every 60 ms out, and the words in them.

A Kaldi filter bank at a low frame rate, then 70 layers of SAN-M (arXiv 2006.01713): self-attention
beside an FSMN memory, a depthwise convolution over the values. Four query vectors stand in front
of the speech and ask for its language, its emotion, its events and the style of the text; a linear
layer makes text of all frames by connectionist temporal classification. Parameters are named as in
FunASR's `model.pt`; `feature_shift` and `feature_scale` are the two vectors of its `am.mvn`.

Under the mask of the stream a frame sees the queries, its own block and a bounded number of blocks
before it; the queries see only themselves. The memory's kernel of 11 frames sees 5 to each side:
those before cross into earlier blocks, those behind end with the block. Nothing behind a block is
seen, so a block is encoded as soon as its own samples are there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minmo.model.block_streaming import (
    BlockStreamingEncoder,
    Context,
    Count,
    KeyValueRing,
    NextBlock,
    Whole,
    Windows,
    look,
)
from minmo.model.features import KaldiFbank, hamming_window, stack_frames
from minmo.model.sinusoidal import sinusoids
from minmo.model.streaming import advance, is_there

Language = Literal["auto", "zh", "en", "yue", "ja", "ko", "nospeech"]

LANGUAGES: dict[Language, int] = {
    "auto": 0,
    "zh": 3,
    "en": 4,
    "yue": 7,
    "ja": 11,
    "ko": 12,
    "nospeech": 13,
}
"""Rows of `embed` that ask for a language."""
_EMOTION, _EVENT = 1, 2
_WRITTEN, _SPOKEN = 14, 15
_QUERY_ROWS = 16
_QUERIES = 4
_BLANK = 0


@dataclass(frozen=True)
class SenseVoiceEncoderConfig:
    """Sizes of SenseVoice-Small; the defaults are the published ones.

    Attributes:
        mel_bins: of the filter bank.
        stacked_frames: frames of the filter bank that are joined to one.
        frame_stride: frames of the filter bank from one joined frame to the next.
        width: channels of a frame.
        mlp_width: inner channels of a layer's MLP.
        layers: SAN-M layers; the first one maps joined frames to the width.
        text_layers: further SAN-M layers, behind a norm.
        heads: attention heads.
        kernel_size: frames that the memory sees, an odd number.
        vocabulary_size: classes of the head, the blank first.
        block_frames: frames of a block of the stream; 4 are 240 ms.
        left_blocks: blocks before its own that a frame of the stream sees.
    """

    mel_bins: int = 80
    stacked_frames: int = 7
    frame_stride: int = 6
    width: int = 512
    mlp_width: int = 2048
    layers: int = 50
    text_layers: int = 20
    heads: int = 4
    kernel_size: int = 11
    vocabulary_size: int = 25_055
    block_frames: int = 4
    left_blocks: int = 16

    @property
    def feature_width(self) -> int:
        """Channels of a joined frame."""
        return self.mel_bins * self.stacked_frames


@dataclass
class SanmState(KeyValueRing):
    """What a layer remembers, for its memory too.

    Attributes:
        tail: `[slots, (kernel_size - 1) // 2, width]`, the values of the last frames.
    """

    tail: Tensor


@dataclass(frozen=True)
class Recognition:
    """What SenseVoice hears in a clip, as rows of its vocabulary.

    Attributes:
        tags: language, emotion, event and style of the text, one token each.
        tokens: the words.
    """

    tags: list[int]
    tokens: list[int]


class SenseVoiceEncoder(BlockStreamingEncoder):
    """The encoder, and the head that recognises."""

    feature_shift: Tensor
    feature_scale: Tensor

    look_ahead = 0

    def __init__(self, config: SenseVoiceEncoderConfig) -> None:
        super().__init__(config.width, config.block_frames, config.left_blocks)
        self.config = config
        self.fbank = KaldiFbank(config.mel_bins, hamming_window)
        self.samples_per_frame = config.frame_stride * self.fbank.hop
        self.rows_before = (config.stacked_frames - 1) // 2
        self.look_behind = self.rows_before * self.fbank.hop
        seen = (config.stacked_frames - self.rows_before - 1) * self.fbank.hop + self.fbank.length
        if seen > self.samples_per_frame:
            raise ValueError(
                f"{config.stacked_frames} stacked frames reach {seen} samples, "
                f"a stride of {config.frame_stride} has {self.samples_per_frame}: stack fewer"
            )
        self.register_buffer("feature_shift", torch.zeros(config.feature_width))
        self.register_buffer("feature_scale", torch.ones(config.feature_width))
        self.embed = nn.Embedding(_QUERY_ROWS, config.feature_width)
        self.encoder = SanmEncoder(config)
        self.ctc = CtcHead(config)

    def forward(
        self, samples: Tensor, language: Language = "auto", written: bool = False
    ) -> Tensor:
        """Encodes whole clips as the weights were trained: every frame sees all of them.

        Args:
            samples: `[batch, samples]` at 16 kHz, -1 to 1; at least 400.
            language: that is asked for; "auto" lets the model hear which it is.
            written: whether text is to have punctuation and digits.

        Returns:
            `[batch, frames, width]`; frame i stands for samples `960 i` to `960 (i + 1)`.
        """
        return self._encode_clip(samples, language, written)[:, _QUERIES:]

    def recognise(
        self, samples: Tensor, language: Language = "auto", written: bool = False
    ) -> list[Recognition]:
        """The words of whole clips, by the most probable class of each frame.

        Args:
            samples: `[batch, samples]` at 16 kHz, -1 to 1; at least 400.
            language: that is asked for; "auto" lets the model hear which it is.
            written: whether text is to have punctuation and digits.

        Returns:
            For each clip what is heard in it.
        """
        classes = self.ctc(self._encode_clip(samples, language, written)).argmax(-1)
        return [
            Recognition(tags=row[:_QUERIES].tolist(), tokens=collapse(row[_QUERIES:]))
            for row in classes
        ]

    @property
    def shortest_clip(self) -> int:
        """Samples that one frame needs."""
        return self.fbank.length

    def frame_counts(self, samples: Count) -> Count:
        """Frames that so many samples make: all that have a row of the filter bank of their own."""
        rows = (samples - self.fbank.length) // self.fbank.hop + 1
        return -(-rows // self.config.frame_stride)

    def analyse(self, windows: Windows) -> tuple[Tensor, Tensor]:
        """Joined frames, `[batch, blocks, block_frames, feature_width]`, and no statistics."""
        rows = self.fbank(windows.samples)
        batch, blocks, _, mel_bins = rows.shape
        last = (windows.there - self.fbank.length) // self.fbank.hop + self.rows_before
        frame = torch.arange(self.block_frames, device=rows.device)[:, None]
        within = torch.arange(self.config.stacked_frames, device=rows.device)
        wanted = (self.config.frame_stride * frame + within).flatten()
        # The first and the last row of a stream stand for those that do not exist.
        lowest = self.rows_before * windows.first[..., None]
        source = torch.minimum(torch.maximum(wanted, lowest), last[..., None]).clamp(min=0)
        source = source.expand(batch, blocks, -1)[..., None].expand(-1, -1, -1, mel_bins)
        joined = rows.gather(2, source).view(batch, blocks, self.block_frames, -1)
        return self._normalised(joined), rows.new_zeros(batch, blocks, 0, dtype=torch.float64)

    def embed_blocks(self, analysed: Tensor, statistics: Tensor, windows: Windows) -> Tensor:
        """Joined frames need nothing more."""
        return analysed

    def transform(self, frames: Tensor, positions: Tensor, context: Context) -> Tensor:
        """Queries and the SAN-M layers: `[batch, frames, feature_width]` to `[..., width]`."""
        encoded = self._encode(frames, positions, context, _query_rows("auto", written=False))
        return encoded[:, _QUERIES:]

    def layer_state(
        self, slots: int, device: torch.device | None, dtype: torch.dtype
    ) -> list[KeyValueRing]:
        """Empty keys, values and memories of each layer."""
        config = self.config
        layers = config.layers + config.text_layers
        rings = self.key_value_rings(layers, config.heads, slots, device, dtype)
        shape = (slots, (config.kernel_size - 1) // 2, config.width)
        return [
            SanmState(ring.keys, ring.values, torch.zeros(shape, device=device, dtype=dtype))
            for ring in rings
        ]

    def _encode_clip(self, samples: Tensor, language: Language, written: bool) -> Tensor:
        """`[batch, 4 + frames, width]`, the queries' outputs first."""
        count = self._counted(samples.shape[-1])
        config = self.config
        joined = stack_frames(self.fbank(samples), config.stacked_frames, config.frame_stride)
        positions = torch.arange(count, device=samples.device)[None]
        rows = _query_rows(language, written)
        return self._encode(self._normalised(joined), positions, Whole(), rows)

    def _normalised(self, joined: Tensor) -> Tensor:
        return ((joined + self.feature_shift) * self.feature_scale).to(self.embed.weight.dtype)

    def _encode(
        self, frames: Tensor, positions: Tensor, context: Context, rows: list[int]
    ) -> Tensor:
        queries = torch.stack([self.embed.weight[row] for row in rows])
        queries = queries.expand(len(frames), -1, -1)
        hidden = torch.cat((queries, frames), dim=1) * self.width**0.5
        # Positions count from 1.
        before = torch.arange(1, _QUERIES + 1, device=frames.device).expand(len(positions), -1)
        numbers = torch.cat((before, positions + _QUERIES + 1), dim=1)
        hidden = hidden + sinusoids(numbers, hidden.shape[-1]).to(hidden)
        if context.mask is not None:
            context = replace(context, mask=_with_queries(context.mask))
        encoded: Tensor = self.encoder(hidden, context)
        return encoded


def collapse(classes: Tensor) -> list[int]:
    """Tokens of a path of connectionist temporal classification: repeats joined, blanks dropped.

    Args:
        classes: `[frames]`, the class of each.
    """
    return [token for token, _ in groupby(classes.tolist()) if token != _BLANK]


def _query_rows(language: Language, written: bool) -> list[int]:
    if language not in LANGUAGES:
        raise ValueError(f"language is {language!r}: SenseVoice knows {', '.join(LANGUAGES)}")
    return [LANGUAGES[language], _EMOTION, _EVENT, _WRITTEN if written else _SPOKEN]


def _with_queries(mask: Tensor) -> Tensor:
    """`[batch, 1, frames, others]` with the queries in front of both: they see only themselves."""
    mask = F.pad(mask, (_QUERIES, 0), value=True)
    queries = F.pad(mask.new_ones(len(mask), 1, _QUERIES, _QUERIES), (0, mask.shape[-1] - _QUERIES))
    return torch.cat((queries, mask), dim=2)


class CtcHead(nn.Module):
    """Classes of each frame."""

    def __init__(self, config: SenseVoiceEncoderConfig) -> None:
        super().__init__()
        self.ctc_lo = nn.Linear(config.width, config.vocabulary_size)

    def forward(self, frames: Tensor) -> Tensor:
        """`[batch, frames, width]` to logits `[batch, frames, vocabulary_size]`."""
        logits: Tensor = self.ctc_lo(frames)
        return logits


class SanmEncoder(nn.Module):
    """All SAN-M layers."""

    def __init__(self, config: SenseVoiceEncoderConfig) -> None:
        super().__init__()
        width = config.width
        self.encoders0 = nn.ModuleList([SanmLayer(config, config.feature_width)])
        self.encoders = nn.ModuleList([SanmLayer(config, width) for _ in range(config.layers - 1)])
        self.tp_encoders = nn.ModuleList(
            [SanmLayer(config, width) for _ in range(config.text_layers)]
        )
        self.after_norm = nn.LayerNorm(width)
        self.tp_norm = nn.LayerNorm(width)

    def forward(self, hidden: Tensor, context: Context) -> Tensor:
        """Reads the queries and frames.

        Args:
            hidden: `[batch, 4 + frames, feature_width]`.
            context: what they see.

        Returns:
            `[batch, 4 + frames, width]`.
        """
        first = [*self.encoders0, *self.encoders]
        for number, layer in enumerate(first):
            hidden = layer(hidden, context, number)
        hidden = self.after_norm(hidden)
        for number, layer in enumerate(self.tp_encoders, start=len(first)):
            hidden = layer(hidden, context, number)
        encoded: Tensor = self.tp_norm(hidden)
        return encoded


class SanmLayer(nn.Module):
    """SAN-M, then an MLP; both behind a layer norm."""

    def __init__(self, config: SenseVoiceEncoderConfig, input_width: int) -> None:
        super().__init__()
        self.self_attn = SanmAttention(config, input_width)
        self.feed_forward = SanmMlp(config)
        self.norm1 = nn.LayerNorm(input_width)
        self.norm2 = nn.LayerNorm(config.width)

    def forward(self, hidden: Tensor, context: Context, number: int) -> Tensor:
        """Reads the queries and frames.

        Args:
            hidden: `[batch, 4 + frames, input_width]`.
            context: what they see.
            number: of the layer.

        Returns:
            `[batch, 4 + frames, width]`.
        """
        attended: Tensor = self.self_attn(self.norm1(hidden), context, number)
        # A layer that changes the width has nothing to add to.
        hidden = hidden + attended if hidden.shape[-1] == attended.shape[-1] else attended
        changed: Tensor = self.feed_forward(self.norm2(hidden))
        return hidden + changed


class SanmMlp(nn.Module):
    """Two linear layers with a ReLU between."""

    def __init__(self, config: SenseVoiceEncoderConfig) -> None:
        super().__init__()
        self.w_1 = nn.Linear(config.width, config.mlp_width)
        self.w_2 = nn.Linear(config.mlp_width, config.width)

    def forward(self, hidden: Tensor) -> Tensor:
        """`[batch, frames, width]` to the same."""
        changed: Tensor = self.w_2(F.relu(self.w_1(hidden)))
        return changed


class SanmAttention(nn.Module):
    """Self-attention and, beside it, a memory of the values of neighbouring frames."""

    def __init__(self, config: SenseVoiceEncoderConfig, input_width: int) -> None:
        super().__init__()
        width = config.width
        if width % config.heads:
            raise ValueError(f"width is {width}: it must be a multiple of {config.heads} heads")
        if config.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {config.kernel_size}: it must be odd")
        self.heads = config.heads
        self.block_frames = config.block_frames
        self.side = (config.kernel_size - 1) // 2
        self.linear_q_k_v = nn.Linear(input_width, 3 * width)
        self.linear_out = nn.Linear(width, width)
        self.fsmn_block = nn.Conv1d(width, width, config.kernel_size, groups=width, bias=False)

    def forward(self, hidden: Tensor, context: Context, number: int) -> Tensor:
        """`[batch, 4 + frames, input_width]` to `[..., width]`; see `SanmLayer.forward`."""
        joined = self.linear_q_k_v(hidden)
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in joined.chunk(3, dim=-1)
        )
        seen = context.extend(number, key[:, :, _QUERIES:], value[:, :, _QUERIES:])
        keys = torch.cat((key[:, :, :_QUERIES], seen[0]), dim=2)
        values = torch.cat((value[:, :, :_QUERIES], seen[1]), dim=2)
        attended = look(query, keys, values, context.mask).transpose(1, 2).flatten(-2)
        memory = self._memory(joined.chunk(3, dim=-1)[2], context, number)
        merged: Tensor = self.linear_out(attended)
        return merged + memory

    def _memory(self, values: Tensor, context: Context, number: int) -> Tensor:
        """`[batch, 4 + frames, width]` to the same."""
        if context.mask is None:
            return values + self._convolve(F.pad(values, (0, 0, self.side, self.side)))
        queries, frames = values[:, :_QUERIES], values[:, _QUERIES:]
        before = F.pad(queries, (0, 0, self.side - _QUERIES, 0))
        if isinstance(context, NextBlock):
            before, frames = self._remember(before, frames, context, number)
        # Behind the end of each block there is nothing to be seen.
        count = frames.shape[1]
        padded = F.pad(frames, (0, 0, 0, -count % self.block_frames))
        blocks = torch.cat((before, padded), dim=1)
        blocks = blocks.unfold(1, self.side + self.block_frames, self.block_frames)
        blocks = F.pad(blocks.transpose(2, 3), (0, 0, 0, self.side))
        convolved = self._convolve(blocks.flatten(0, 1)).reshape(len(values), -1, values.shape[-1])
        own = self._convolve(F.pad(queries, (0, 0, self.side, self.side)))
        return values + torch.cat((own, convolved[:, :count]), dim=1)

    def _remember(
        self, start: Tensor, frames: Tensor, context: NextBlock, number: int
    ) -> tuple[Tensor, Tensor]:
        """The values before a block and those of it that are there; the last are remembered."""
        state = cast("SanmState", context.layers[number])
        before = torch.where((context.positions == 0)[:, None, None], start, state.tail)
        there = is_there(context.lengths, frames.shape[1])
        frames = frames.where(there[..., None], 0)
        _, tail = advance(before, frames, context.lengths)
        coming = (context.lengths > 0)[:, None, None]
        state.tail.copy_(torch.where(coming, tail, state.tail))
        return before, frames

    def _convolve(self, frames: Tensor) -> Tensor:
        convolved: Tensor = self.fsmn_block(frames.transpose(1, 2))
        return convolved.transpose(1, 2)
