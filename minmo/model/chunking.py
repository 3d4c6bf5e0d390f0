"""Streams that go chunk by chunk: every frame sees its own chunk and some before it.

A chunk is read in one step, so the attention of a stream looks at whole chunks only and what it
remembers can lie in a ring: a chunk's keys and values stay where they were written until, some
chunks later, a new one takes their place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from minmo.model.streaming import block_mask, is_there

# Earlier frames that the convolutions of kernel size 3 see.
TAIL = 2


@dataclass(frozen=True)
class Chunking:
    """How a sequence is cut into chunks, and how far back a frame sees.

    Attributes:
        size: frames of a chunk.
        offset: frames by which the first chunk is shorter.
        left: chunks before its own that a frame sees.
    """

    size: int
    offset: int
    left: int

    def __post_init__(self) -> None:
        if not 0 <= self.offset < self.size:
            raise ValueError(f"offset is {self.offset}: 0 to {self.size - 1}, less than a chunk")
        if self.left < 0:
            raise ValueError(f"left is {self.left}: 0 or more chunks")

    @classmethod
    def whole(cls, frames: int) -> Self:
        """One chunk over everything: every frame sees every other."""
        return cls(size=max(frames, 1), offset=0, left=0)

    def times(self, rate: int) -> Chunking:
        """The same where each frame is `rate` frames."""
        return Chunking(self.size * rate, self.offset * rate, self.left)

    @property
    def ring_chunks(self) -> int:
        """Chunks that a stream's attention sees, its own included."""
        return self.left + 1


class View(NamedTuple):
    """What the frames of a clip, or of a stream's chunk, see.

    Attributes:
        bias: `[batch, 1, frames or 1, others]`, 0 where a frame sees another, else minus infinity.
        queries: `[batch, frames]`, numbers of the frames that look.
        keys: `[batch, others]`, numbers of the frames that are looked at.
    """

    bias: Tensor
    queries: Tensor
    keys: Tensor

    def distances(self, chunking: Chunking) -> Tensor:
        """How many frames before a frame another lies, plus `size - 1`: `[batch, frames, others]`.

        So frames of its own chunk that come later have a number too: 0 to
        `(left + 2) * size - 2`, without meaning where a frame doesn't see another.
        """
        distances = self.queries[:, :, None] - self.keys[:, None, :] + chunking.size - 1
        return distances.clamp(0, (chunking.left + 2) * chunking.size - 2)


def clip_view(chunking: Chunking, lengths: Tensor, frames: int, dtype: torch.dtype) -> View:
    """What the frames of whole clips see.

    Args:
        chunking: how the clips are cut.
        lengths: `[batch]`, how many frames of each clip are there.
        frames: of every clip, with those that aren't there.
        dtype: of the bias.
    """
    numbers = torch.arange(frames, device=lengths.device)[None]
    keys = numbers.where(is_there(lengths, frames), -1)
    mask = block_mask(numbers, keys, chunking.size, chunking.left, chunking.offset)
    return View(_bias(mask, dtype), numbers, keys)


class Place(NamedTuple):
    """Where the next chunk of each slot stands.

    Attributes:
        slots: `[slots]`, their rows of the state.
        is_all: whether these are all rows of the state, in order.
        number: `[slots]`, the chunk's number, 0 for a stream's first.
        ring_chunk: `[slots]`, its place in the ring.
        start: `[slots]`, the number of its first frame.
        lengths: `[slots]`, how many of its frames are there.
        last: `[slots, TAIL]`, rows of the last frames that are there, where `TAIL` earlier frames
            stand before the chunk.
    """

    slots: Tensor
    is_all: bool
    number: Tensor
    ring_chunk: Tensor
    start: Tensor
    lengths: Tensor
    last: Tensor


def place_chunk(
    chunking: Chunking, start: Tensor, lengths: Tensor, slots: Tensor | None = None
) -> Place:
    """Where chunks stand.

    Args:
        chunking: how streams are cut.
        start: `[slots]`, number of the first frame of each.
        lengths: `[slots]`, frames of each.
        slots: `[slots]`, their rows of the state, none twice; None for all of them in order.
    """
    is_all = slots is None
    if slots is None:
        slots = torch.arange(start.shape[0], device=start.device)
    number = (start + chunking.offset) // chunking.size
    last = lengths[:, None] + torch.arange(TAIL, device=start.device)
    return Place(slots, is_all, number, number % chunking.ring_chunks, start, lengths, last)


def ring_view(chunking: Chunking, place: Place, dtype: torch.dtype) -> View:
    """What the frames of the chunk see of the ring, the chunk itself written there included."""
    device = place.number.device
    size, chunks = chunking.size, chunking.ring_chunks
    age = (place.number[:, None] - torch.arange(chunks, device=device)) % chunks
    number = (place.number[:, None] - age)[..., None]
    frame = torch.arange(size, device=device)
    # The first chunk is shorter, the newest as long as it happens to be. Where none of its frames
    # are there, one is seen all the same, or the attention of a slot that waits divides by zero.
    full = torch.where(number == 0, size - chunking.offset, size)
    newest = place.lengths.clamp(min=1)[:, None, None]
    seen = (number >= 0) & (frame < torch.where(age[..., None] == 0, newest, full))
    start = torch.where(number == 0, 0, number * size - chunking.offset)
    keys = (start + frame).flatten(1)
    queries = place.start[:, None] + frame
    return View(_bias(seen.flatten(1)[:, None, None], dtype), queries, keys)


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    # Frames behind a length may see nothing: they see everything instead of dividing by zero.
    mask = mask | ~mask.any(-1, keepdim=True)
    zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return zeros.masked_fill_(~mask, -torch.inf)


class Past(Protocol):
    """What the layers get of the frames before these; they ask in the order of computation."""

    def before(self, frames: Tensor) -> Tensor:
        """`[rows, frames, channels]` behind the `TAIL` frames before it."""

    def remember(self, keys_values: Tensor) -> Tensor:
        """Keys and values of these frames, `[batch, 2, heads, frames, head_dim]`, to all seen."""


class Beginning:
    """Nothing came before: the frames are a whole clip."""

    def before(self, frames: Tensor) -> Tensor:
        """Puts silence before the frames."""
        return F.pad(frames, (0, 0, TAIL, 0))

    def remember(self, keys_values: Tensor) -> Tensor:
        """Returns them as they are."""
        return keys_values


class Ring:
    """A stream's past, and where its next chunk is written.

    Args:
        place: of the chunk.
        tails: `[slots, TAIL, channels]`, for all convolutions side by side; with branches between
            slots and frames, a row is a slot's branch.
        memory: `[slots, layers, 2, heads, chunks, size, head_dim]`. The chunk goes where the one
            lies that it doesn't see any more, so a slot that waits loses nothing it will need. It
            may have a smaller number type than the frames.

    Both are the whole state; of it, only the slots of `place` are read and written.
    """

    def __init__(self, place: Place, tails: Tensor, memory: Tensor) -> None:
        self._place = place
        self._all_tails = tails
        self._tails = tails if place.is_all else tails.index_select(0, place.slots)
        self._memory = memory
        self._new_tails: list[Tensor] = []
        self._channel = 0
        self._layer = 0
        self._rows = place.last.view(-1, *[1] * (tails.ndim - 3), TAIL, 1)

    def before(self, frames: Tensor) -> Tensor:
        """Puts the next tail before the frames, and keeps their own."""
        channels = frames.shape[-1]
        tail = self._tails[..., self._channel : self._channel + channels]
        self._channel += channels
        frames = frames.view(*tail.shape[:-2], *frames.shape[-2:])
        joined = torch.cat((tail, frames), dim=-2)
        self._new_tails.append(joined.gather(-2, self._rows.expand_as(tail)))
        return joined.flatten(0, -3)

    def remember(self, keys_values: Tensor) -> Tensor:
        """Writes them into the next layer's ring; returns all of it."""
        memory = self._memory[:, self._layer]
        self._layer += 1
        slots, written = self._place.slots, keys_values.to(memory.dtype)
        memory[slots, :, :, self._place.ring_chunk] = written
        seen = memory if self._place.is_all else memory.index_select(0, slots)
        return seen.flatten(-3, -2).to(keys_values.dtype)

    def close(self) -> None:
        """Stores the tails, after the last layer."""
        self._all_tails.index_copy_(0, self._place.slots, torch.cat(self._new_tails, dim=-1))
