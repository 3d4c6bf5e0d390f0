"""The estimator of flow matching: in which direction a noisy mel has to go.

A U-Net at one rate, as in CosyVoice 2 (arXiv 2412.10117, section 2.4): residual blocks of causal
convolutions, each with Transformer layers behind it, and one long shortcut. The residual blocks
are told the solver's time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minmo.model.chunking import TAIL, Chunking, Past
from minmo.model.stored_layout import WindowConv, store_apart
from minmo.model.streaming import SlotState

# The noisy mel, the encoder's mean, the speaker, the known mel.
INPUTS = 4


@dataclass(frozen=True)
class FlowEstimatorSizes:
    """Sizes of the estimator.

    Attributes:
        mel_bins: channels of a mel frame.
        width: channels of a hidden frame.
        heads: attention heads of a Transformer layer.
        head_dim: channels of a head.
        mid_blocks: blocks between the first and the last.
        layers_per_block: Transformer layers of a block.
    """

    mel_bins: int
    width: int
    heads: int
    head_dim: int
    mid_blocks: int
    layers_per_block: int

    @property
    def blocks(self) -> int:
        """Residual blocks, each with its Transformer layers."""
        return self.mid_blocks + 2

    @property
    def layers(self) -> int:
        """Transformer layers."""
        return self.blocks * self.layers_per_block

    @property
    def tail_channels(self) -> int:
        """Input channels of all causal convolutions together."""
        first = INPUTS * self.mel_bins + self.width
        last = 3 * self.width
        between_and_final = 3 * self.width
        return first + last + 2 * self.width * self.mid_blocks + between_and_final


@dataclass
class FlowEstimatorState(SlotState):
    """What the estimator remembers of its streams, for every step of the solver.

    The two branches of guidance are so many more heads: they never see each other.

    Attributes:
        tails: `[slots, steps, branches, TAIL, tail_channels]`, of the convolutions.
        memory: `[slots, steps, layers, 2, branches * heads, chunks, size, head_dim]`, keys and
            values.
    """

    tails: Tensor
    memory: Tensor


class FlowEstimator(nn.Module):
    """A noisy mel and its conditions to the velocity of the flow."""

    def __init__(self, sizes: FlowEstimatorSizes) -> None:
        super().__init__()
        self.sizes = sizes
        width = sizes.width
        self.time = _TimeEmbedding(INPUTS * sizes.mel_bins, 4 * width)
        self.first = _Block(sizes, INPUTS * sizes.mel_bins)
        self.first_conv = WindowConv(width, width, TAIL + 1)
        self.middle = nn.ModuleList([_Block(sizes, width) for _ in range(sizes.mid_blocks)])
        self.last = _Block(sizes, 2 * width)
        self.last_conv = WindowConv(width, width, TAIL + 1)
        self.final = _ConvBlock(width, width)
        self.output = WindowConv(width, sizes.mel_bins, 1)
        self.apply(_draw)

    def embed_times(self, times: Tensor) -> list[Tensor]:
        """What each residual block is told.

        Args:
            times: `[times]`, 0 for noise to 1 for mel.

        Returns:
            For each block `[times, width]`.
        """
        embedded = F.mish(self.time(times))
        return [block.residual.time(embedded) for block in self._blocks()]

    def forward(self, inputs: Tensor, times: list[Tensor], bias: Tensor, past: Past) -> Tensor:
        """The velocity at each frame.

        Args:
            inputs: `[batch, branches, frames, 4 * mel_bins]`: the noisy mel, the mean, the
                speaker, the known mel.
            times: of `embed_times`, each so that it can be added to
                `[batch * branches, frames, width]`.
            bias: of the view of these frames.
            past: what came before them.

        Returns:
            `[batch, branches, frames, mel_bins]`.
        """
        branches = inputs.shape[1]
        # Linear layers are at their best on three dimensions.
        velocity = self._follow(inputs.flatten(0, 1), branches, times, bias, past)
        return velocity.unflatten(0, (-1, branches))  # type: ignore[no-untyped-call,no-any-return]

    def _follow(
        self, rows: Tensor, branches: int, times: list[Tensor], bias: Tensor, past: Past
    ) -> Tensor:
        view = (branches, bias, past)
        hidden = shortcut = self.first(rows, times[0], *view)
        hidden = self.first_conv(past.before(hidden))
        for block, time in zip(self.middle, times[1:-1], strict=True):
            hidden = block(hidden, time, *view)
        hidden = self.last(torch.cat((hidden, shortcut), dim=-1), times[-1], *view)
        hidden = self.last_conv(past.before(hidden))
        velocity: Tensor = self.output(self.final(hidden, past))
        return velocity

    def initial_state(
        self,
        slots: int,
        steps: int,
        branches: int,
        chunking: Chunking,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        ring_dtype: torch.dtype | None = None,
    ) -> FlowEstimatorState:
        """The state of streams that start; `chunking` counts mel frames.

        Keys and values may have a number type of their own.
        """
        sizes = self.sizes
        tails = (slots, steps, branches, TAIL, sizes.tail_channels)
        layers = (slots, steps, sizes.layers, 2, branches * sizes.heads)
        memory = (*layers, chunking.ring_chunks, chunking.size, sizes.head_dim)
        return FlowEstimatorState(
            torch.zeros(tails, device=device, dtype=dtype),
            torch.zeros(memory, device=device, dtype=ring_dtype or dtype),
        )

    def _blocks(self) -> Iterator[_Block]:
        for block in (self.first, *self.middle, self.last):
            assert isinstance(block, _Block)
            yield block


def _draw(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | WindowConv):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class _TimeEmbedding(nn.Module):
    """Sinusoids of the solver's time through an MLP."""

    def __init__(self, sinusoids: int, width: int) -> None:
        super().__init__()
        self.sinusoids = sinusoids
        self.linear1 = nn.Linear(sinusoids, width)
        self.linear2 = nn.Linear(width, width)

    def forward(self, times: Tensor) -> Tensor:
        """`[times]` to `[times, width]`."""
        half = self.sinusoids // 2
        exponents = torch.arange(half, device=times.device) * (-math.log(10000.0) / (half - 1))
        # Computed in float32: a thousandth of the time must not get lost.
        angles = 1000 * times.float()[:, None] * exponents.exp()
        embedded = torch.cat((angles.sin(), angles.cos()), dim=-1).to(self.linear1.weight.dtype)
        through: Tensor = self.linear2(F.silu(self.linear1(embedded)))
        return through


class _ConvBlock(nn.Module):
    """A causal convolution, a norm over channels, Mish."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.conv = WindowConv(in_channels, width, TAIL + 1)
        self.norm = nn.LayerNorm(width)

    def forward(self, frames: Tensor, past: Past) -> Tensor:
        """`[rows, frames, in_channels]` to `[rows, frames, width]`."""
        return F.mish(self.norm(self.conv(past.before(frames))))


class _ResidualBlock(nn.Module):
    """Two convolutions, the time between them, beside a shortcut."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.block1 = _ConvBlock(in_channels, width)
        self.time = nn.Linear(4 * width, width)
        self.block2 = _ConvBlock(width, width)
        self.shortcut = WindowConv(in_channels, width, 1)

    def forward(self, frames: Tensor, time: Tensor, past: Past) -> Tensor:
        """`[rows, frames, in_channels]` to `[rows, frames, width]`."""
        hidden = self.block2(self.block1(frames, past) + time, past)
        added: Tensor = hidden + self.shortcut(frames)
        return added


class _Layer(nn.Module):
    """Attention without positions, then an MLP; both behind a norm."""

    def __init__(self, sizes: FlowEstimatorSizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        width, inner = sizes.width, sizes.heads * sizes.head_dim
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * inner, bias=False)
        store_apart(self, "query_key_value", ("query", "key", "value"))
        self.attention_output = nn.Linear(inner, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)

    def forward(self, frames: Tensor, branches: int, bias: Tensor, past: Past) -> Tensor:
        """`[batch * branches, frames, width]` to the same shape."""
        rows, length, _ = frames.shape
        joined = self.query_key_value(self.attention_norm(frames))
        joined = joined.view(rows // branches, branches, length, 3, self.heads, -1)
        joined = joined.permute(0, 3, 1, 4, 2, 5).flatten(2, 3)
        key, value = past.remember(joined[:, 1:]).unbind(1)
        attended = F.scaled_dot_product_attention(joined[:, 0], key, value, attn_mask=bias)
        attended = attended.reshape(rows, self.heads, length, -1).transpose(1, 2).flatten(-2)
        frames = frames + self.attention_output(attended)
        updated: Tensor = frames + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(frames))))
        return updated


class _Block(nn.Module):
    """A residual block and the Transformer layers behind it."""

    def __init__(self, sizes: FlowEstimatorSizes, in_channels: int) -> None:
        super().__init__()
        self.residual = _ResidualBlock(in_channels, sizes.width)
        self.layers = nn.ModuleList([_Layer(sizes) for _ in range(sizes.layers_per_block)])

    def forward(
        self, frames: Tensor, time: Tensor, branches: int, bias: Tensor, past: Past
    ) -> Tensor:
        """`[batch * branches, frames, in_channels]` to `[batch * branches, frames, width]`."""
        hidden: Tensor = self.residual(frames, time, past)
        for layer in self.layers:
            hidden = layer(hidden, branches, bias, past)
        return hidden
