"""Voice encoders that stream in blocks of frames.

A frame sees its own block and a bounded number of blocks before it. A block is encoded as soon as
all of its samples and a stated look-ahead are there, in one round whose shapes never change: what
comes before the Transformer is computed anew from the block's samples, so that a stream remembers
only samples, running statistics, and the keys and values of the blocks that are still seen.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minmo.model.streaming import SlotState, attend, block_mask, frame_positions

Count = TypeVar("Count", int, Tensor)

SAMPLE_RATE_HZ = 16_000
"""Of everything that is listened to."""


@dataclass
class KeyValueRing(SlotState):
    """Keys and values of a layer's last blocks; block i lies at place `i % blocks`.

    Attributes:
        keys: `[slots, heads, blocks, block_frames, head_dim]`.
        values: `[slots, heads, blocks, block_frames, head_dim]`.
    """

    keys: Tensor
    values: Tensor


@dataclass
class EncoderState(SlotState):
    """What a voice encoder remembers of its streams.

    Attributes:
        samples: `[slots, look_behind + block_samples + look_ahead - 1]`, those that a later block
            sees, float32; zeros behind the last.
        held: `[slots]`, how many samples from the next block's first one on are there.
        position: `[slots]`, frames encoded so far.
        statistics: `[slots, values]`, float64, of everything that was heard up to the last block.
        layers: of each layer.
    """

    samples: Tensor
    held: Tensor
    position: Tensor
    statistics: Tensor
    layers: Sequence[KeyValueRing]


@dataclass(frozen=True)
class Whole:
    """Frames of whole clips, which have no others before them.

    Attributes:
        mask: `[1, 1, frames, frames]`, true where a frame sees another; none where all do.
    """

    mask: Tensor | None = None

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values that a layer's frames look at: their own."""
        return key, value


@dataclass(frozen=True)
class NextBlock:
    """Each slot's next block, and what is remembered of those before it.

    Attributes:
        mask: `[slots, 1, block_frames, blocks * block_frames]`.
        place: `[slots]`, where in the rings the block goes.
        positions: `[slots]`, frames before it.
        lengths: `[slots]`, how many frames of it are there; none for a slot that waits.
        layers: of the state.
    """

    mask: Tensor
    place: Tensor
    positions: Tensor
    lengths: Tensor
    layers: Sequence[KeyValueRing]

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Remembers a layer's keys and values of the block, gives those of all blocks seen.

        Args:
            layer: its number.
            key: `[slots, heads, block_frames, head_dim]`.
            value: `[slots, heads, block_frames, head_dim]`.

        Returns:
            Keys and values, each `[slots, heads, blocks * block_frames, head_dim]`.
        """
        ring = self.layers[layer]
        slots = torch.arange(len(self.place), device=key.device)
        coming = (self.lengths > 0)[:, None, None, None]
        for held, new in ((ring.keys, key), (ring.values, value)):
            held[slots, :, self.place] = torch.where(coming, new, held[slots, :, self.place])
        return ring.keys.flatten(2, 3), ring.values.flatten(2, 3)


Context: TypeAlias = Whole | NextBlock


def look(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention, `[batch, heads, frames, head_dim]`; without a mask everything is seen."""
    if mask is None:
        return F.scaled_dot_product_attention(query, key, value)
    return attend(query, key, value, mask)


@dataclass(frozen=True)
class Windows:
    """The samples that blocks are made of, in order, several of each clip or one of each slot.

    Attributes:
        samples: `[batch, blocks, look_behind + block_samples + look_ahead]`; zeros before a
            stream's start and behind its end.
        there: `[batch, blocks]`, samples that are there from a block's first one on.
        first: `[batch, blocks]`, true for a stream's first block.
    """

    samples: Tensor
    there: Tensor
    first: Tensor


class BlockStreamingEncoder(nn.Module, ABC):
    """What the encoders share: whole clips under the mask of the stream, and the stream.

    Attributes:
        samples_per_frame: from one frame to the next, at 16 kHz.
        width: channels of a frame.
        block_frames: frames of a block.
        left_blocks: blocks before its own that a frame sees.
        look_behind: samples before a block that its frames see.
        look_ahead: samples behind a block that its frames see.
    """

    sample_rate = SAMPLE_RATE_HZ
    samples_per_frame: int
    look_behind: int
    look_ahead: int
    statistics = 0

    def __init__(self, width: int, block_frames: int, left_blocks: int) -> None:
        super().__init__()
        if block_frames < 1 or left_blocks < 0:
            raise ValueError(
                f"a block of {block_frames} frames that sees {left_blocks} before it: "
                "at least 1 and 0 are needed"
            )
        self.width = width
        self.block_frames = block_frames
        self.left_blocks = left_blocks

    @property
    def block_samples(self) -> int:
        """Samples that a block stands for."""
        return self.block_frames * self.samples_per_frame

    @abstractmethod
    def frame_counts(self, samples: Count) -> Count:
        """Frames that so many samples make, for each of them; numbers below 1 mean none."""

    def frames_of(self, samples: int) -> int:
        """Frames that a clip of so many samples makes."""
        return max(0, self.frame_counts(samples))

    @abstractmethod
    def analyse(self, windows: Windows) -> tuple[Tensor, Tensor]:
        """The first half of what comes before the Transformer.

        Returns:
            What `embed_blocks` takes, `[batch, blocks, rows, dim]`, and what each block adds to the
            statistics, `[batch, blocks, statistics]`, float64, at least zero.
        """

    def accumulate(self, added: Tensor) -> Tensor:
        """Running statistics `[batch, blocks, statistics]` of what each block adds."""
        return added.cumsum(1)

    @abstractmethod
    def embed_blocks(self, analysed: Tensor, statistics: Tensor, windows: Windows) -> Tensor:
        """The second half: `[batch, blocks, block_frames, dim]`.

        Args:
            analysed: what `analyse` gave.
            statistics: `[batch, blocks, statistics]`, of all up to each block's end.
            windows: of the blocks.
        """

    @abstractmethod
    def transform(self, frames: Tensor, positions: Tensor, context: Context) -> Tensor:
        """The Transformer.

        Args:
            frames: `[batch, frames, dim]`, what `embed_blocks` gave.
            positions: `[batch or 1, frames]`, their numbers in the stream.
            context: what they see.

        Returns:
            `[batch, frames, width]`.
        """

    @abstractmethod
    def layer_state(
        self, slots: int, device: torch.device | None, dtype: torch.dtype
    ) -> list[KeyValueRing]:
        """The state of each layer, zeros."""

    def forward_causal(self, samples: Tensor) -> Tensor:
        """Whole clips under the mask of the stream: what `step` and `flush` give.

        Args:
            samples: `[batch, samples]` at 16 kHz, -1 to 1.

        Returns:
            `[batch, frames_of(samples), width]`.
        """
        count = self._counted(samples.shape[1])
        blocks = -(-count // self.block_frames)
        windows = self._windows(samples, blocks)
        analysed, added = self.analyse(windows)
        embedded = self.embed_blocks(analysed, self.accumulate(added), windows)
        frames = embedded.flatten(1, 2)[:, :count]
        positions = torch.arange(count, device=samples.device)[None]
        mask = block_mask(positions, positions, self.block_frames, self.left_blocks)
        return self.transform(frames, positions, Whole(mask))

    def initial_state(
        self, slots: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> EncoderState:
        """The state of streams that start.

        Args:
            slots: streams.
            device: of the weights.
            dtype: of the weights, that keys and values have too.
        """
        capacity = self.look_behind + self.block_samples + self.look_ahead - 1
        counts = torch.zeros(2, slots, dtype=torch.long, device=device)
        return EncoderState(
            samples=torch.zeros(slots, capacity, device=device, dtype=torch.float32),
            held=counts[0],
            position=counts[1],
            statistics=torch.zeros(slots, self.statistics, device=device, dtype=torch.float64),
            layers=self.layer_state(slots, device, dtype or torch.get_default_dtype()),
        )

    def step(self, samples: Tensor, lengths: Tensor, state: EncoderState) -> tuple[Tensor, Tensor]:
        """Takes the next samples of each slot's stream, any number of them.

        Up to `block_samples` in a call take one round, more take one for every `block_samples`:
        shapes depend on the number of samples in a call alone. What does not fill a block waits.
        A round costs as much for a slot that waits as for one that has a block; one where all wait
        is left out on a CPU, where asking costs nothing, so that small pieces are cheap there.

        Args:
            samples: `[slots, samples]` at 16 kHz, -1 to 1.
            lengths: `[slots]`, how many of them are there.
            state: changed in place.

        Returns:
            `[slots, rounds * block_frames, width]`, and for each slot how many of these frames are
            there, `[slots]`.
        """
        if samples.shape[1] == 0:
            raise ValueError("a step of no samples: give at least 1 and a length of 0 to wait")
        block, needed = self.block_samples, self.block_samples + self.look_ahead
        joined, held = self._joined(samples, lengths, state)
        made, blocks = [], torch.zeros_like(held)
        for number in range(-(-samples.shape[1] // block)):
            start = number * block
            window = joined[:, start : start + self.look_behind + needed]
            there = held - start
            ready = there >= needed
            if _none(ready):
                made.append(self._no_frames(len(ready)))
            else:
                frames = self.block_frames * ready
                made.append(self._encode_block(window, there.clamp(0, needed), frames, state))
            blocks += ready
        self._keep(joined, held, blocks * block, state)
        return torch.cat(made, dim=1), blocks * self.block_frames

    def flush(self, ending: Tensor, state: EncoderState) -> tuple[Tensor, Tensor]:
        """Ends the streams in some slots, which are then free for others.

        Args:
            ending: `[slots]`, true for those.
            state: changed in place.

        Returns:
            `[slots, block_frames, width]`, the frames of the last, shorter block, and for each
            slot how many there are, `[slots]`.
        """
        window = F.pad(state.samples, (0, 1))
        counts = ending * self.frame_counts(state.held).clamp(0, self.block_frames)
        frames = self._encode_block(window, state.held, counts, state)
        state.reset(ending)
        return frames, counts

    def _no_frames(self, slots: int) -> Tensor:
        weight = next(self.parameters())
        return weight.new_zeros(slots, self.block_frames, self.width)

    def _counted(self, samples: int) -> int:
        count = self.frames_of(samples)
        if count == 0:
            raise ValueError(
                f"a clip of {samples} samples is too short for one frame: "
                f"pad it to {self.shortest_clip}"
            )
        return count

    @property
    @abstractmethod
    def shortest_clip(self) -> int:
        """Samples that one frame needs."""

    def _windows(self, samples: Tensor, blocks: int) -> Windows:
        block, needed = self.block_samples, self.block_samples + self.look_ahead
        behind = (blocks - 1) * block + needed - samples.shape[1]
        padded = F.pad(samples, (self.look_behind, max(0, behind)))
        starts = block * torch.arange(blocks, device=samples.device)
        return Windows(
            samples=padded.unfold(1, self.look_behind + needed, block)[:, :blocks],
            there=(samples.shape[1] - starts).clamp(max=needed)[None],
            first=(starts == 0)[None],
        )

    def _joined(
        self, samples: Tensor, lengths: Tensor, state: EncoderState
    ) -> tuple[Tensor, Tensor]:
        """Samples held and new ones without a gap, zeros behind them, and their number."""
        capacity = state.samples.shape[1]
        both = torch.cat((state.samples, samples.float()), dim=1)
        held = state.held + lengths
        column = torch.arange(both.shape[1], device=samples.device)
        end = self.look_behind + state.held[:, None]
        source = torch.where(column < end, column, capacity + column - end)
        joined = both.gather(1, source.clamp(max=both.shape[1] - 1))
        return joined.where(column < end + lengths[:, None], 0), held

    def _keep(self, joined: Tensor, held: Tensor, spent: Tensor, state: EncoderState) -> None:
        column = torch.arange(state.samples.shape[1], device=joined.device)
        source = (spent[:, None] + column).clamp(max=joined.shape[1] - 1)
        state.held.copy_(held - spent)
        there = column < self.look_behind + state.held[:, None]
        state.samples.copy_(joined.gather(1, source).where(there, 0))

    def _encode_block(
        self, window: Tensor, there: Tensor, lengths: Tensor, state: EncoderState
    ) -> Tensor:
        """One round: a block of each slot that has one, `[slots, block_frames, width]`."""
        windows = Windows(window[:, None], there[:, None], (state.position == 0)[:, None])
        analysed, added = self.analyse(windows)
        running = self.accumulate(torch.stack((state.statistics, added[:, 0]), dim=1))[:, 1]
        frames = self.embed_blocks(analysed, running[:, None], windows)[:, 0]
        positions = frame_positions(state.position, self.block_frames)
        encoded = self.transform(frames, positions, self._next_block(positions, lengths, state))
        state.statistics.copy_(running.where(lengths[:, None] > 0, state.statistics))
        state.position += lengths
        return encoded

    def _next_block(self, positions: Tensor, lengths: Tensor, state: EncoderState) -> NextBlock:
        kept = self.left_blocks + 1
        current = state.position[:, None] // self.block_frames
        places = torch.arange(kept, device=positions.device)
        numbers = current - (current - places) % kept
        within = torch.arange(self.block_frames, device=positions.device)
        keys = (numbers[:, :, None] * self.block_frames + within).flatten(1)
        keys = keys.where(keys < (state.position + lengths)[:, None], -1)
        return NextBlock(
            mask=block_mask(positions, keys, self.block_frames, self.left_blocks),
            place=current[:, 0] % kept,
            positions=state.position.clone(),
            lengths=lengths,
            layers=state.layers,
        )

    def key_value_rings(
        self, layers: int, heads: int, slots: int, device: torch.device | None, dtype: torch.dtype
    ) -> list[KeyValueRing]:
        """Empty rings for layers as wide as the encoder."""
        shape = (slots, heads, self.left_blocks + 1, self.block_frames, self.width // heads)
        return [
            KeyValueRing(*(torch.zeros(shape, device=device, dtype=dtype) for _ in range(2)))
            for _ in range(layers)
        ]


def _none(ready: Tensor) -> bool:
    """Whether no slot is ready; on a device whose values cost time to read, never."""
    return ready.device.type == "cpu" and not bool(ready.any())
