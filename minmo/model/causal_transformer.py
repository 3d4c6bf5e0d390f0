"""A Transformer layer over time whose left context is bounded, over whole clips or streamed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minmo.model.streaming import SlotState, advance, attend, band_mask

_ROTARY_THETA = 10_000.0


@dataclass
class CausalLayerState(SlotState):
    """What a layer remembers of each stream.

    Attributes:
        context: `[slots, left_context, 2 * width]`, keys, not rotated yet, and values of the last
            frames.
    """

    context: Tensor


class CausalTransformerLayer(nn.Module):
    """Attention to a frame's own past, then an MLP; both behind a layer norm.

    Rotary embedding knows distances alone, so keys are kept as they are and rotated where they
    stand among the frames in sight: numbers stay small however long a stream gets, and the slots
    of a batch share one table.

    Args:
        width: channels of a frame.
        heads: attention heads, each of an even number of channels.
        mlp_width: inner channels of the MLP.
        left_context: frames before its own that a frame sees.
    """

    def __init__(self, width: int, heads: int, mlp_width: int, left_context: int) -> None:
        super().__init__()
        if width % (2 * heads):
            raise ValueError(
                f"width is {width}: it must be a multiple of {2 * heads}, "
                f"an even number of channels for each of {heads} heads"
            )
        self.width, self.heads, self.left_context = width, heads, left_context
        self.input_layernorm = nn.LayerNorm(width)
        self.qkv_proj = nn.Linear(width, 3 * width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.post_attention_layernorm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_width), nn.GELU(), nn.Linear(mlp_width, width)
        )

    def forward(self, hidden: Tensor, last: int | None = None) -> Tensor:
        """Reads whole clips.

        Args:
            hidden: `[batch, frames, width]`.
            last: how many of the last frames are wanted; all if None.

        Returns:
            `[batch, last, width]`.
        """
        frames = hidden.shape[1]
        first = 0 if last is None else frames - last
        numbers = torch.arange(frames, device=hidden.device)[None]
        mask = band_mask(numbers[:, first:], numbers, self.left_context)
        query, pairs = self._project(hidden)
        return self._read(hidden[:, first:], query[:, first:], pairs, mask)

    def initial_state(
        self, slots: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> CausalLayerState:
        """The state of streams that start."""
        shape = (slots, self.left_context, 2 * self.width)
        return CausalLayerState(torch.zeros(shape, device=device, dtype=dtype))

    def step(self, chunk: Tensor, lengths: Tensor, mask: Tensor, state: CausalLayerState) -> Tensor:
        """Reads the next frames of each stream.

        Args:
            chunk: `[slots, frames, width]`.
            lengths: `[slots]`, how many of them are there.
            mask: `[slots, 1, frames, left_context + frames]`, `band_mask` of these frames over
                those in sight.
            state: changed in place.

        Returns:
            `[slots, frames, width]`.
        """
        query, pairs = self._project(chunk)
        joined, context = advance(state.context, pairs, lengths)
        state.context.copy_(context)
        return self._read(chunk, query, joined, mask)

    def _project(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        projected = self.qkv_proj(self.input_layernorm(hidden))
        query, pairs = projected.split((self.width, 2 * self.width), dim=-1)
        return query, pairs

    def _read(self, hidden: Tensor, query: Tensor, pairs: Tensor, mask: Tensor) -> Tensor:
        key, value = pairs.chunk(2, dim=-1)
        before = pairs.shape[1] - query.shape[1]
        attended = attend(
            _rotate(self._split(query), before),
            _rotate(self._split(key), 0),
            self._split(value),
            mask,
        )
        hidden = hidden + self.o_proj(attended.transpose(1, 2).flatten(-2))
        read: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return read

    def _split(self, frames: Tensor) -> Tensor:
        """`[batch, frames, width]` to `[batch, heads, frames, head_dim]`."""
        return frames.view(*frames.shape[:2], self.heads, self.width // self.heads).transpose(1, 2)


def _rotate(heads: Tensor, first: int) -> Tensor:
    """Turns frames `[batch, heads, frames, head_dim]`, of which the first has number `first`."""
    frames, head_dim = heads.shape[-2:]
    exponents = torch.arange(0, head_dim, 2, device=heads.device, dtype=torch.float32) / head_dim
    numbers = torch.arange(first, first + frames, device=heads.device, dtype=torch.float32)
    angles = numbers[:, None] * _ROTARY_THETA**-exponents
    cos, sin = angles.cos().to(heads), angles.sin().to(heads)
    left, right = heads.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)
