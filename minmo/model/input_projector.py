"""The input projector: the voice encoder's frames to speech embeddings of the LLM's width.

Two Transformer layers and one convolution that halves the rate, as in the paper. Attention looks
back only, over a bounded number of frames, and the convolution is causal, so a stream that gets
its frames piece by piece makes exactly what the whole clip makes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minmo.model.attention import FusedProjections
from minmo.model.interleaved_rotary import rotary_table, rotate


@dataclass(frozen=True)
class InputProjectorConfig:
    """Sizes of the input projector.

    Attributes:
        input_width: channels of the voice encoder's frames.
        output_width: channels of the LLM's embeddings.
        mlp_width: inner channels of a Transformer layer's MLP.
        heads: attention heads of a Transformer layer.
        layers: Transformer layers.
        left_context: frames before its own that a frame attends to in each layer.
        stride: frames for each speech embedding.
        kernel_size: frames that the convolution sees, the last `stride` of them its own.
    """

    input_width: int
    output_width: int
    mlp_width: int
    heads: int
    layers: int = 2
    left_context: int = 84
    stride: int = 2
    kernel_size: int = 4


@dataclass
class ProjectorState:
    """What a stream remembers between two pieces.

    Attributes:
        position: frames read so far.
        contexts: for each layer, keys and values `[2, batch, heads, left_context, head_dim]` of
            the last frames, fewer at the start.
        tail: `[batch, frames, width]`, what the next window of the convolution starts with.
    """

    position: int = 0
    contexts: list[Tensor] = field(default_factory=list)
    tail: Tensor | None = None


class InputProjector(nn.Module):
    """Causal Transformer layers at the encoder's rate, then a strided convolution."""

    def __init__(self, config: InputProjectorConfig) -> None:
        super().__init__()
        if config.kernel_size < config.stride:
            raise ValueError(
                f"kernel_size is {config.kernel_size}: at least the stride, {config.stride}, "
                "or frames are lost"
            )
        self.config = config
        self.layers = nn.ModuleList([ProjectorLayer(config) for _ in range(config.layers)])
        self.conv = nn.Conv1d(
            config.input_width, config.output_width, config.kernel_size, stride=config.stride
        )
        self.norm = nn.LayerNorm(config.output_width)

    def forward(self, frames: Tensor) -> Tensor:
        """Projects a whole clip.

        Args:
            frames: `[batch, frames, input_width]`; a last one without its pair is left out.

        Returns:
            `[batch, frames // stride, output_width]`.
        """
        return self.stream(frames, ProjectorState())

    def stream(self, frames: Tensor, state: ProjectorState) -> Tensor:
        """Projects the next frames of a stream.

        Args:
            frames: `[batch, frames, input_width]`, any number.
            state: of the stream; a new one starts it. Changed in place.

        Returns:
            `[batch, embeddings, output_width]`: those that these frames completed.
        """
        config = self.config
        length, head_dim = frames.shape[1], config.input_width // config.heads
        if not state.contexts:
            shape = (2, frames.shape[0], config.heads, 0, head_dim)
            state.contexts = [frames.new_zeros(shape) for _ in self.layers]
        if state.tail is None:
            before = config.kernel_size - config.stride
            state.tail = frames.new_zeros(frames.shape[0], before, config.input_width)
        held = state.contexts[0].shape[3]
        table = rotary_table(state.position + length, head_dim, 10_000.0)[:, state.position :]
        table = table.to(frames)
        mask = _band(length, held, config.left_context, frames.device)
        hidden = frames
        for index, layer in enumerate(self.layers):
            hidden, state.contexts[index] = layer(hidden, table, mask, state.contexts[index])
        state.position += length
        return self._downsample(hidden, state)

    def _downsample(self, hidden: Tensor, state: ProjectorState) -> Tensor:
        assert state.tail is not None
        waiting = torch.cat((state.tail, hidden), dim=1)
        windows = (waiting.shape[1] - self.config.kernel_size) // self.config.stride + 1
        if windows <= 0:
            state.tail = waiting
            return waiting.new_empty(waiting.shape[0], 0, self.config.output_width)
        state.tail = waiting[:, windows * self.config.stride :]
        projected = self.conv(waiting.transpose(1, 2)).transpose(1, 2)
        embeddings: Tensor = self.norm(projected)
        return embeddings


class ProjectorLayer(nn.Module):
    """Attention to the past, then an MLP; both behind a layer norm."""

    def __init__(self, config: InputProjectorConfig) -> None:
        super().__init__()
        self.left_context = config.left_context
        self.input_layernorm = nn.LayerNorm(config.input_width)
        self.self_attn = FusedProjections(config.input_width, config.heads)
        self.post_attention_layernorm = nn.LayerNorm(config.input_width)
        self.mlp = nn.Sequential(
            nn.Linear(config.input_width, config.mlp_width),
            nn.GELU(),
            nn.Linear(config.mlp_width, config.input_width),
        )

    def forward(
        self, hidden: Tensor, table: Tensor, mask: Tensor, context: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Reads the next frames.

        Args:
            hidden: `[batch, frames, width]`.
            table: rows of `rotary_table` for these frames.
            mask: `[frames, held + frames]`, true where a frame attends.
            context: `[2, batch, heads, held, head_dim]`, keys and values before these frames.

        Returns:
            The frames, `[batch, frames, width]`, and the context of the next ones.
        """
        joined = self.self_attn.split_heads(self.input_layernorm(hidden))
        query, key = rotate(joined[:2], table)
        both = torch.cat((context, torch.stack((key, joined[2]))), dim=3)
        attended = F.scaled_dot_product_attention(query, both[0], both[1], mask)
        hidden = hidden + self.self_attn.merge_heads(attended)
        hidden = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return hidden, both[:, :, :, max(0, both.shape[3] - self.left_context) :]


def _band(length: int, held: int, left_context: int, device: torch.device) -> Tensor:
    frame = torch.arange(held, held + length, device=device)[:, None]
    other = torch.arange(held + length, device=device)[None]
    return (other <= frame) & (other >= frame - left_context)


def random_input_projector(config: InputProjectorConfig, seed: int = 0) -> InputProjector:
    """An untrained projector, the same one for the same seed, without touching the global one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return InputProjector(config)
