"""Streaming as a protocol: one set of weights, a batch of slots, one stream in each.

A module that streams has, beside its `forward` over a whole clip, two methods::

    state = module.initial_state(slots, device=..., dtype=...)
    outputs = module.step(chunk, lengths, state)

`chunk` is `[slots, frames, ...]` with as many frames for every slot, so that shapes stay fixed, and
`lengths`, `[slots]`, says how many of them are there: fewer at a stream's end, none for a slot that
waits, whose state then stays as it is. What stands behind a slot's length, in a chunk or in an
output, has no meaning and no influence. `state` is changed in place.

`forward` computes the same under the same mask, over the whole clip at once: any way to cut a clip
into chunks gives what `forward` gives. A state of zeros is a stream's start, so that `reset` is
all it takes to let a new stream into a slot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

_Change: TypeAlias = Callable[[Tensor], Tensor]


@dataclass
class SlotState:
    """What a module remembers of the streams in its slots.

    A subclass is a dataclass whose fields are tensors `[slots, ...]`, other states, or lists of
    either. All zeros means that nothing was heard yet.
    """

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor of it, those of nested states included."""
        for field in fields(self):
            value = getattr(self, field.name)
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, SlotState):
                    yield from item.tensors()
                else:
                    yield item

    def reset(self, leaving: Tensor) -> None:
        """Makes room: streams in the slots where `leaving`, `[slots]`, is true start anew."""
        for tensor in self.tensors():
            tensor.masked_fill_(leaving.view(-1, *[1] * (tensor.ndim - 1)), 0)

    def restart(self, slot: int) -> None:
        """Makes room in one slot, and touches nothing else: a state can be large."""
        for tensor in self.tensors():
            tensor[slot].zero_()

    def select(self, slots: Tensor) -> Self:
        """A copy with the given slots only, `[count]`, in their order."""
        return self._map(lambda tensor: tensor.index_select(0, slots))

    def put(self, slots: Tensor, part: Self) -> None:
        """Writes back what `select` gave."""
        for tensor, piece in zip(self.tensors(), part.tensors(), strict=True):
            tensor.index_copy_(0, slots, piece)

    def size_bytes(self) -> int:
        """Memory that it takes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors())

    def _map(self, change: _Change) -> Self:
        def changed(value: Any) -> Any:
            if isinstance(value, list):
                return [changed(item) for item in value]
            return value._map(change) if isinstance(value, SlotState) else change(value)

        values = {field.name: changed(getattr(self, field.name)) for field in fields(self)}
        return type(self)(**values)


def is_there(lengths: Tensor, frames: int) -> Tensor:
    """`[slots, frames]`, true for a chunk's frames that are there."""
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


def advance(tail: Tensor, chunk: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Joins what is remembered with what is new.

    Args:
        tail: `[slots, kept, ...]`, the last frames before this chunk.
        chunk: `[slots, frames, ...]`, the next frames.
        lengths: `[slots]`, how many of them are there.

    Returns:
        Both in a row, `[slots, kept + frames, ...]`, and the next tail, `[slots, kept, ...]`.
    """
    joined = torch.cat((tail, chunk), dim=1)
    rows = lengths[:, None] + torch.arange(tail.shape[1], device=tail.device)
    rows = rows.view(*rows.shape, *[1] * (tail.ndim - 2)).expand(-1, -1, *tail.shape[2:])
    return joined, joined.gather(1, rows)


def frame_positions(positions: Tensor, frames: int) -> Tensor:
    """`[slots, frames]`, numbers of a chunk's frames, where `positions`, `[slots]`, came before."""
    return positions[:, None] + torch.arange(frames, device=positions.device)


def context_positions(positions: Tensor, lengths: Tensor, kept: int, frames: int) -> Tensor:
    """Numbers of the frames that `advance` joins: `[slots, kept + frames]`.

    Those that no frame has, before a stream's start or behind a chunk's length, are negative.

    Args:
        positions: `[slots]`, frames before this chunk.
        lengths: `[slots]`, how many frames of the chunk are there.
        kept: frames of the tail.
        frames: frames of the chunk.
    """
    numbers = frame_positions(positions - kept, kept + frames)
    return numbers.where(numbers < (positions + lengths)[:, None], -1)


def band_mask(queries: Tensor, keys: Tensor, left_context: int) -> Tensor:
    """Causal attention with bounded left context.

    Args:
        queries: `[slots, frames]`, numbers of the frames that look.
        keys: `[slots, others]`, numbers of the frames that are looked at; negative for none.
        left_context: frames before its own that a frame sees.

    Returns:
        `[slots, 1, frames, others]`, true where a frame sees another.
    """
    distance = queries[:, :, None] - keys[:, None, :]
    seen = (distance >= 0) & (distance <= left_context) & (keys >= 0)[:, None, :]
    return seen[:, None]


def block_mask(
    queries: Tensor, keys: Tensor, block: int, left_blocks: int, offset: int = 0
) -> Tensor:
    """Attention within a block and to the blocks before it.

    Frame i lies in block `(i + offset) // block`: with an offset the first block is shorter.

    Args:
        queries: `[slots, frames]`, numbers of the frames that look.
        keys: `[slots, others]`, numbers of the frames that are looked at; negative for none.
        block: frames of a block.
        left_blocks: blocks before its own that a frame sees.
        offset: frames by which the first block is shorter.

    Returns:
        `[slots, 1, frames, others]`, true where a frame sees another.
    """
    own = ((queries + offset) // block)[:, :, None]
    others = ((keys + offset) // block)[:, None, :]
    seen = (others <= own) & (others >= own - left_blocks) & (keys >= 0)[:, None, :]
    return seen[:, None]


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Attention where a frame that sees nothing gets zeros instead of NaN.

    Args:
        query: `[slots, heads, frames, head_dim]`.
        key: `[slots, heads, others, head_dim]`.
        value: `[slots, heads, others, head_dim]`.
        mask: `[slots, 1, frames, others]`, true where a frame sees another.

    Returns:
        `[slots, heads, frames, head_dim]`.
    """
    # Frames behind a slot's length may see nothing; one key spares them a division by zero.
    blind = ~mask.any(-1, keepdim=True)
    seen = mask | blind
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
    return attended.masked_fill(blind, 0)
