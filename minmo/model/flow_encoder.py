"""The encoder of flow matching: speech tokens at 25 Hz to what the mel follows, at 50 Hz.

Conformer layers without their convolutions, with relative positions (Transformer-XL,
arXiv 1901.02860, appendix B), first at the tokens' rate, behind a layer that looks a few tokens
ahead, then at twice that rate: the encoder of CosyVoice 2 (arXiv 2412.10117, section 2.4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minmo.model.chunking import (
    TAIL,
    Beginning,
    Chunking,
    Past,
    Ring,
    View,
    clip_view,
    place_chunk,
    ring_view,
)
from minmo.model.stored_layout import WindowConv, store_apart
from minmo.model.streaming import SlotState, is_there

MEL_FRAMES_PER_TOKEN = 2


@dataclass(frozen=True)
class FlowEncoderSizes:
    """Sizes of the encoder.

    Attributes:
        width: channels of a frame.
        heads: attention heads of a layer.
        mlp_width: inner channels of a layer's MLP.
        layers: at the tokens' rate.
        upsampled_layers: at the mel's rate.
        look_ahead: tokens after its own that a frame sees beyond its chunk.
    """

    width: int
    heads: int
    mlp_width: int
    layers: int
    upsampled_layers: int
    look_ahead: int


@dataclass
class FlowEncoderState(SlotState):
    """What the encoder remembers of its streams.

    Attributes:
        tails: `[slots, TAIL, 2 * width]`, of the look-ahead's and the upsampling's convolution.
        memory: `[slots, layers, 2, heads, chunks, tokens, head_dim]`, keys and values.
        upsampled_memory: the same of the layers at the mel's rate.
    """

    tails: Tensor
    memory: Tensor
    upsampled_memory: Tensor


class FlowEncoder(nn.Module):
    """Embeddings of speech tokens to frames of the mel's rate."""

    def __init__(self, sizes: FlowEncoderSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.embedding = _InputLayer(sizes.width)
        self.look_ahead = _LookAhead(sizes.width, sizes.look_ahead)
        self.layers = nn.ModuleList([_Layer(sizes) for _ in range(sizes.layers)])
        self.upsample = WindowConv(sizes.width, sizes.width, MEL_FRAMES_PER_TOKEN * TAIL + 1)
        self.upsampled_embedding = _InputLayer(sizes.width)
        self.upsampled_layers = nn.ModuleList(
            [_Layer(sizes) for _ in range(sizes.upsampled_layers)]
        )
        self.norm = nn.LayerNorm(sizes.width)

    def forward(self, embeddings: Tensor, lengths: Tensor, chunking: Chunking) -> Tensor:
        """Encodes whole clips.

        Args:
            embeddings: `[batch, tokens, width]`.
            lengths: `[batch]`, how many tokens are there.
            chunking: how the tokens are cut.

        Returns:
            `[batch, 2 * tokens, width]`.
        """
        dtype, tokens = embeddings.dtype, embeddings.shape[1]
        views = [
            clip_view(chunking.times(rate), lengths * rate, tokens * rate, dtype)
            for rate in (1, MEL_FRAMES_PER_TOKEN)
        ]
        past = Beginning()
        embeddings = F.pad(embeddings, (0, 0, 0, self.sizes.look_ahead))
        return self._encode(embeddings, lengths, chunking, (views[0], views[1]), (past, past, past))

    def initial_state(
        self,
        slots: int,
        chunking: Chunking,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        ring_dtype: torch.dtype | None = None,
    ) -> FlowEncoderState:
        """The state of streams that start; keys and values may have a number type of their own."""
        sizes, ring_dtype = self.sizes, ring_dtype or dtype

        def memory(layers: int, rate: int) -> Tensor:
            head_dim = sizes.width // sizes.heads
            ring = (chunking.ring_chunks, chunking.size * rate)
            shape = (slots, layers, 2, sizes.heads, *ring, head_dim)
            return torch.zeros(shape, device=device, dtype=ring_dtype)

        return FlowEncoderState(
            torch.zeros(slots, TAIL, 2 * sizes.width, device=device, dtype=dtype),
            memory(sizes.layers, 1),
            memory(sizes.upsampled_layers, MEL_FRAMES_PER_TOKEN),
        )

    def step(
        self,
        embeddings: Tensor,
        lengths: Tensor,
        ahead: Tensor,
        start: Tensor,
        chunking: Chunking,
        state: FlowEncoderState,
        slots: Tensor | None = None,
    ) -> Tensor:
        """Encodes the next chunk of each stream.

        Args:
            embeddings: `[slots, size + look_ahead, width]`, of the chunk's tokens and behind them
                of those that are known beyond.
            lengths: `[slots]`, tokens of the chunk.
            ahead: `[slots]`, tokens known beyond.
            start: `[slots]`, tokens before the chunk.
            chunking: how the stream is cut.
            state: of the streams; changed in place.
            slots: `[slots]`, their rows of the state, none twice; None for all of them in order.

        Returns:
            `[slots, 2 * size, width]`.
        """
        dtype = embeddings.dtype
        doubled = chunking.times(MEL_FRAMES_PER_TOKEN)
        place = place_chunk(chunking, start, lengths, slots)
        doubled_place = place_chunk(
            doubled, start * MEL_FRAMES_PER_TOKEN, lengths * MEL_FRAMES_PER_TOKEN, slots
        )
        views = ring_view(chunking, place, dtype), ring_view(doubled, doubled_place, dtype)
        tails = Ring(place, state.tails, state.memory[:, :0])
        pasts = (
            tails,
            Ring(place, state.tails[..., :0], state.memory),
            Ring(doubled_place, state.tails[..., :0], state.upsampled_memory),
        )
        encoded = self._encode(embeddings, lengths + ahead, chunking, views, pasts)
        tails.close()
        return encoded

    def _encode(
        self,
        embeddings: Tensor,
        known: Tensor,
        chunking: Chunking,
        views: tuple[View, View],
        pasts: tuple[Past, Past, Past],
    ) -> Tensor:
        hidden = self.embedding(embeddings)
        # What isn't there must be zeros for the convolution that looks ahead.
        hidden = hidden * is_there(known, hidden.shape[1])[..., None]
        hidden = self.look_ahead(hidden, pasts[0])
        sight = _Sight.of(views[0], chunking, hidden)
        for layer in self.layers:
            hidden = layer(hidden, sight, pasts[1])
        hidden = pasts[0].before(hidden).repeat_interleave(MEL_FRAMES_PER_TOKEN, dim=1)
        hidden = self.upsampled_embedding(self.upsample(hidden))
        sight = _Sight.of(views[1], chunking.times(MEL_FRAMES_PER_TOKEN), hidden)
        for layer in self.upsampled_layers:
            hidden = layer(hidden, sight, pasts[2])
        encoded: Tensor = self.norm(hidden)
        return encoded


def relative_table(chunking: Chunking, width: int, device: torch.device | None = None) -> Tensor:
    """Sines and cosines, in turn, of every distance that a frame sees: `[distances, width]`.

    Row `size - 1` is distance 0; distances to frames that come later are negative.
    """
    reach = (chunking.left + 1) * chunking.size
    distances = torch.arange(1 - chunking.size, reach, device=device)
    exponents = torch.arange(0, width, 2, device=device) * (-math.log(10000.0) / width)
    angles = distances[:, None] * exponents.exp()
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


class _Sight(NamedTuple):
    """What all layers of a rate share.

    Attributes:
        table: that of `relative_table`.
        distances: `[batch, 1, frames, others]`, rows of it.
        bias: of the view.
    """

    table: Tensor
    distances: Tensor
    bias: Tensor

    @classmethod
    def of(cls, view: View, chunking: Chunking, frames: Tensor) -> Self:
        table = relative_table(chunking, frames.shape[-1], frames.device).to(frames)
        return cls(table, view.distances(chunking)[:, None], view.bias)


class _InputLayer(nn.Module):
    """A linear layer, a norm, and the scale that goes with sinusoids."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = math.sqrt(width)
        self.linear = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, frames: Tensor) -> Tensor:
        """`[batch, frames, width]` to the same shape."""
        normed: Tensor = self.norm(self.linear(frames))
        return self.scale * normed


class _LookAhead(nn.Module):
    """Two convolutions beside a shortcut; the first sees some frames ahead."""

    def __init__(self, width: int, look_ahead: int) -> None:
        super().__init__()
        self.look_ahead = look_ahead
        self.conv1 = WindowConv(width, width, look_ahead + 1)
        self.conv2 = WindowConv(width, width, TAIL + 1)

    def forward(self, frames: Tensor, past: Past) -> Tensor:
        """`[batch, frames + look_ahead, width]` to `[batch, frames, width]`."""
        seen = F.leaky_relu(self.conv1(frames))
        convolved: Tensor = self.conv2(past.before(seen))
        return convolved + frames[:, : convolved.shape[1]]


class _Layer(nn.Module):
    """Attention with relative positions, then an MLP; both behind a norm."""

    def __init__(self, sizes: FlowEncoderSizes) -> None:
        super().__init__()
        # The published weights were trained with this epsilon.
        self.attention_norm = nn.LayerNorm(sizes.width, eps=1e-12)
        self.attention = _RelativeAttention(sizes.width, sizes.heads)
        self.mlp_norm = nn.LayerNorm(sizes.width, eps=1e-12)
        self.mlp_in = nn.Linear(sizes.width, sizes.mlp_width)
        self.mlp_out = nn.Linear(sizes.mlp_width, sizes.width)

    def forward(self, frames: Tensor, sight: _Sight, past: Past) -> Tensor:
        """`[batch, frames, width]` to the same shape."""
        frames = frames + self.attention(self.attention_norm(frames), sight, past)
        updated: Tensor = frames + self.mlp_out(F.silu(self.mlp_in(self.mlp_norm(frames))))
        return updated


class _RelativeAttention(nn.Module):
    """Attention whose scores know how far apart two frames are (arXiv 1901.02860, section 3.3)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"encoder_width is {width}: it must be a multiple of {heads} heads")
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        store_apart(self, "query_key_value", ("query", "key", "value"))
        self.position = nn.Linear(width, width, bias=False)
        self.content_bias = nn.Parameter(torch.empty(heads, width // heads))
        self.position_bias = nn.Parameter(torch.empty(heads, width // heads))
        nn.init.xavier_uniform_(self.content_bias)
        nn.init.xavier_uniform_(self.position_bias)
        self.output = nn.Linear(width, width)

    def forward(self, frames: Tensor, sight: _Sight, past: Past) -> Tensor:
        """`[batch, frames, width]` to the same shape."""
        batch, length, width = frames.shape
        head_dim = width // self.heads
        joined = self.query_key_value(frames).view(batch, length, 3, self.heads, head_dim)
        joined = joined.permute(0, 2, 3, 1, 4)
        query = joined[:, 0]
        key, value = past.remember(joined[:, 1:]).unbind(1)
        positions = self.position(sight.table).view(-1, self.heads, head_dim).permute(1, 2, 0)
        scores = (query + self.position_bias[:, None]) @ (positions / math.sqrt(head_dim))
        distances = sight.distances.expand(batch, self.heads, -1, -1)
        bias = scores.gather(-1, distances) + sight.bias
        query = query + self.content_bias[:, None]
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        output: Tensor = self.output(attended.transpose(1, 2).flatten(-2))
        return output
