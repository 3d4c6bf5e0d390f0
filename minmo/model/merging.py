"""Merging: one embedding for each piece heard, instead of one for every 48 ms of sound.

Text has about four pieces a second, the projector gives 21 embeddings. The LLM knows text: it reads
a question far better in its own rhythm, and five times fewer positions cost five times less.
Neighbouring embeddings in which the same piece is heard become one, their mean weighted by how
surely it is heard; embeddings in which none is heard become none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from minmo.model.streaming import SlotState, is_there


class Merged(NamedTuple):
    """What is left of a stretch of embeddings.

    Attributes:
        embeddings: `[batch, pieces, width]`, zeros behind the counts.
        classes: `[batch, pieces]`, the piece heard in each.
        frames: `[batch, pieces]`, the number of the first embedding of each.
        counts: `[batch]`, how many there are.
    """

    embeddings: Tensor
    classes: Tensor
    frames: Tensor
    counts: Tensor


@dataclass
class MergingState(SlotState):
    """The piece that is still being heard in each stream.

    Attributes:
        position: `[slots]`, embeddings read so far.
        piece: `[slots]`, its class + 1; 0 where there is none.
        first: `[slots]`, number of the embedding that it began with.
        total: `[slots, width]`, the weighted sum so far.
        weight: `[slots]`, the sum of weights.
    """

    position: Tensor
    piece: Tensor
    first: Tensor
    total: Tensor
    weight: Tensor


def merge(mixtures: Tensor, log_probabilities: Tensor, lengths: Tensor) -> Merged:
    """Merges whole clips; differentiable in the mixtures and in the weights.

    Args:
        mixtures: `[batch, frames, width]`, of `RecognitionHead.mixtures`.
        log_probabilities: `[batch, frames, pieces + 1]`, of `RecognitionHead.forward`.
        lengths: `[batch]`, how many frames of each clip are there.
    """
    state = initial_state(mixtures.shape[0], mixtures.shape[2], mixtures.device, mixtures.dtype)
    ending = torch.ones_like(lengths, dtype=torch.bool)
    return merge_step(mixtures, log_probabilities, lengths, state, ending)


def initial_state(
    slots: int, width: int, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> MergingState:
    """The state of streams that start."""
    none = torch.zeros(slots, dtype=torch.int64, device=device)
    total = torch.zeros(slots, width, device=device, dtype=dtype)
    return MergingState(none, none.clone(), none.clone(), total, total.new_zeros(slots))


def merge_step(
    mixtures: Tensor,
    log_probabilities: Tensor,
    lengths: Tensor,
    state: MergingState,
    ending: Tensor,
) -> Merged:
    """Merges the next embeddings of each stream.

    A piece is given once it is over: when the next embedding holds another piece or none, or when
    the stream ends.

    Args:
        mixtures: `[slots, frames, width]`.
        log_probabilities: `[slots, frames, pieces + 1]`.
        lengths: `[slots]`, how many of the frames are there.
        state: changed in place.
        ending: `[slots]`, streams that end behind these frames.

    Returns:
        Room for one piece more than there are frames.
    """
    slots, frames, width = mixtures.shape
    blank = log_probabilities.shape[-1] - 1
    there = is_there(lengths, frames)
    best = log_probabilities.argmax(-1)
    # One more than the class, 0 for no piece; what is not there goes on as it was.
    codes = (best + 1).masked_fill(best == blank, 0)
    before = torch.cat((state.piece[:, None], codes[:, :-1]), dim=1)
    starts = (codes != before) & (codes > 0) & there
    # Run 0 is the piece that was being heard; each start begins the next.
    run = starts.long().cumsum(1)
    belongs = (codes > 0) & there
    # What does not belong may be anything, even no number, which times zero is no number either.
    weights = (1 - log_probabilities[..., -1].exp()).to(mixtures.dtype).masked_fill(~belongs, 0)
    weighted = (weights[:, :, None] * mixtures).masked_fill(~belongs[:, :, None], 0)
    total = torch.zeros(slots, frames + 1, width, device=mixtures.device, dtype=mixtures.dtype)
    spread = run[:, :, None].expand(-1, -1, width)
    total = total.scatter_add(1, spread, weighted)
    weight = total.new_zeros(slots, frames + 1).scatter_add(1, run, weights)
    total = torch.cat((total[:, :1] + state.total[:, None], total[:, 1:]), dim=1)
    weight = torch.cat((weight[:, :1] + state.weight[:, None], weight[:, 1:]), dim=1)
    numbers = state.position[:, None] + torch.arange(frames, device=codes.device)
    classes = torch.zeros(slots, frames + 1, dtype=torch.int64, device=codes.device)
    # Other frames of a run write behind the last run, where nothing is read.
    target = run.where(starts, frames + 1)
    classes = _put(classes, target, codes)
    first = _put(torch.zeros_like(classes), target, numbers)
    classes[:, 0], first[:, 0] = state.piece, state.first
    last = run[:, -1:] if frames else run.new_zeros(slots, 1)
    final = _last_code(codes, lengths, state.piece)
    goes_on = (final > 0) & ~ending
    index = torch.arange(frames + 1, device=codes.device)
    given = (index <= last) & (classes > 0) & ~((index == last) & goes_on[:, None])
    order = (~given).to(torch.int8).argsort(dim=1, stable=True)
    means = total / weight.clamp(min=1e-6)[:, :, None]
    counts = given.sum(1)
    kept = is_there(counts, frames + 1)
    result = Merged(
        means.gather(1, order[:, :, None].expand(-1, -1, width)).masked_fill(~kept[:, :, None], 0),
        (classes.gather(1, order) - 1).masked_fill(~kept, 0),
        first.gather(1, order).masked_fill(~kept, 0),
        counts,
    )
    open_run = last.clamp(min=0)
    state.position.add_(lengths)
    state.piece.copy_(classes.gather(1, open_run)[:, 0].where(goes_on, 0))
    state.first.copy_(first.gather(1, open_run)[:, 0].where(goes_on, 0))
    held = total.detach().gather(1, open_run[:, :, None].expand(-1, -1, width))[:, 0]
    state.total.copy_(held.masked_fill(~goes_on[:, None], 0))
    state.weight.copy_(weight.detach().gather(1, open_run)[:, 0].where(goes_on, 0))
    return result


def _put(values: Tensor, places: Tensor, sources: Tensor) -> Tensor:
    """`values` with `sources` at `places`, of which one more than there are is nowhere."""
    room = torch.cat((values, values.new_zeros(len(values), 1)), dim=1)
    return room.scatter(1, places, sources)[:, :-1].clone()


def _last_code(codes: Tensor, lengths: Tensor, before: Tensor) -> Tensor:
    """The code of each stream's last frame, or the one before where no frame came."""
    joined = torch.cat((before[:, None], codes), dim=1)
    return joined.gather(1, lengths[:, None])[:, 0]
