"""The input projector: the voice encoder's frames to speech embeddings of the LLM's width.

Two Transformer layers and one convolution that halves the rate, as in the paper (Table 1).
Attention looks back only, over a bounded number of frames, and the convolution is causal, so a
stream that gets its frames piece by piece makes exactly what the whole clip makes.

Where it has letters, the first layer says which letter is heard in each frame, and the others read
that together with the frame (self-conditioned connectionist temporal classification, Nozaki and
Komatsu, 2021): words that are rare are spelled, not guessed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minmo.model.causal_transformer import CausalLayerState, CausalTransformerLayer
from minmo.model.streaming import (
    SlotState,
    advance,
    band_mask,
    context_positions,
    frame_positions,
    is_there,
)


@dataclass(frozen=True)
class InputProjectorConfig:
    """Sizes of the input projector.

    Attributes:
        input_width: channels of the voice encoder's frames.
        width: channels of the Transformer layers; where it differs from the encoder's, a linear
            layer stands before them.
        mlp_width: inner channels of a Transformer layer's MLP.
        heads: attention heads of a Transformer layer.
        output_width: channels of the LLM's embeddings.
        layers: Transformer layers.
        left_context: frames before its own that a frame attends to in each layer.
        kernel_size: frames that the convolution sees, the last `stride` of them its own.
        stride: frames for each speech embedding.
        letters: classes of the letter head, without its blank; 0 for none.
    """

    input_width: int
    width: int
    mlp_width: int
    heads: int
    output_width: int
    layers: int = 2
    left_context: int = 84
    kernel_size: int = 4
    stride: int = 2
    letters: int = 0


@dataclass
class InputProjectorState(SlotState):
    """What the projector remembers of each stream.

    Attributes:
        position: `[slots]`, frames read so far.
        layers: of the Transformer layers.
        tail: `[slots, kernel_size - 1, width]`, the last frames that the convolution may see again.
    """

    position: Tensor
    layers: list[CausalLayerState]
    tail: Tensor


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
        self.in_proj: nn.Module = nn.Identity()
        if config.width != config.input_width:
            self.in_proj = nn.Linear(config.input_width, config.width)
        self.letter_head: nn.Linear | None = None
        if config.letters:
            self.letter_head = nn.Linear(config.width, config.letters + 1)
            self.letter_proj = nn.Linear(config.letters + 1, config.width, bias=False)
        self._layers = [
            CausalTransformerLayer(
                config.width, config.heads, config.mlp_width, config.left_context
            )
            for _ in range(config.layers)
        ]
        self.layers = nn.ModuleList(self._layers)
        self.conv = nn.Conv1d(
            config.width, config.output_width, config.kernel_size, stride=config.stride
        )
        self.norm = nn.LayerNorm(config.output_width)

    def forward(self, frames: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Projects whole clips.

        Args:
            frames: `[batch, frames, input_width]`; the last ones that are too few for an
                embedding are left out.
            lengths: `[batch]`, how many frames of each clip are there; all if None.

        Returns:
            `[batch, frames // stride, output_width]`, zeros behind a clip's own
            `lengths // stride`.
        """
        return self.listen(frames, lengths)[0]

    def listen(self, frames: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Projects whole clips, and says which letters are heard in them.

        Args:
            frames: as `forward` takes them.
            lengths: the same.

        Returns:
            What `forward` gives, and scores before they are normalised, for `recognition_loss`:
            `[batch, frames, letters + 1]`, the last class is the blank; None without letters.
        """
        config = self.config
        count = frames.shape[1] // config.stride
        if lengths is not None:
            frames = _cleared(frames, lengths)
        hidden, letters = self.in_proj(frames), None
        for number, layer in enumerate(self._layers):
            hidden = layer(hidden)
            if number == 0:
                hidden, letters = self._spell(hidden)
        padded = F.pad(
            hidden[:, : count * config.stride], (0, 0, config.kernel_size - config.stride, 0)
        )
        embeddings = self._downsample(padded, count)
        if lengths is not None:
            embeddings = _cleared(embeddings, lengths // config.stride)
        return embeddings, letters

    def initial_state(
        self, slots: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> InputProjectorState:
        """The state of streams that start."""
        config = self.config
        shape = (slots, config.kernel_size - 1, config.width)
        return InputProjectorState(
            torch.zeros(slots, device=device, dtype=torch.int64),
            [layer.initial_state(slots, device, dtype) for layer in self._layers],
            torch.zeros(shape, device=device, dtype=dtype),
        )

    def step(
        self, frames: Tensor, lengths: Tensor, state: InputProjectorState
    ) -> tuple[Tensor, Tensor]:
        """Projects the next frames of each stream.

        Args:
            frames: `[slots, frames, input_width]`, any number.
            lengths: `[slots]`, how many of them are there.
            state: changed in place.

        Returns:
            `[slots, (frames + stride - 1) // stride, output_width]`, the embeddings that these
            frames completed, and `[slots]`, how many of them are there.
        """
        config = self.config
        length, position = frames.shape[1], state.position.clone()
        in_sight = context_positions(position, lengths, config.left_context, length)
        mask = band_mask(frame_positions(position, length), in_sight, config.left_context)
        hidden = self.in_proj(_cleared(frames, lengths))
        for number, layer in enumerate(self._layers):
            hidden = layer.step(hidden, lengths, mask, state.layers[number])
            if number == 0:
                hidden, _ = self._spell(hidden)
        joined, tail = advance(state.tail, hidden, lengths)
        state.tail.copy_(tail)
        state.position.add_(lengths)
        count = (length + config.stride - 1) // config.stride
        windows = self._windows(joined, position % config.stride, count)
        counts = (position + lengths) // config.stride - position // config.stride
        return self._downsample(windows, count), counts

    def _spell(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the second layer reads, `[batch, frames, width]`, and the scores of letters."""
        if self.letter_head is None:
            return hidden, None
        scores: Tensor = self.letter_head(hidden)
        return hidden + self.letter_proj(scores.softmax(-1)), scores

    def _windows(self, joined: Tensor, waiting: Tensor, count: int) -> Tensor:
        """What the convolution sees of each slot.

        Args:
            joined: `[slots, kernel_size - 1 + frames, width]`.
            waiting: `[slots]`, frames that came before and still wait for their embedding.
            count: embeddings that a slot may complete.

        Returns:
            `[slots, kernel_size - stride + count * stride, width]`.
        """
        config = self.config
        seen = config.kernel_size - config.stride + count * config.stride
        # With no frame waiting the first window ends `stride` frames behind the tail.
        first = config.stride - 1 - waiting
        rows = first[:, None] + torch.arange(seen, device=joined.device)
        # Rows behind the last frame belong to embeddings that are not complete yet.
        rows = rows.clamp(max=joined.shape[1] - 1)
        return joined.gather(1, rows[:, :, None].expand(-1, -1, config.width))

    def _downsample(self, windows: Tensor, count: int) -> Tensor:
        if count == 0:
            return windows.new_empty(windows.shape[0], 0, self.config.output_width)
        embeddings: Tensor = self.norm(self.conv(windows.transpose(1, 2)).transpose(1, 2))
        return embeddings


def _cleared(frames: Tensor, lengths: Tensor) -> Tensor:
    """Zeros behind each length: what stands there may be anything, even no number."""
    return frames.masked_fill(~is_there(lengths, frames.shape[1])[:, :, None], 0)
