"""Probes: how the user sounds now, for the LLM to read once and forget.

The LLM reads an embedding for each piece that is heard, so in silence it reads nothing, and there
would be no hidden state to decide on. A probe is the mean of a step's speech embeddings, as large
as text is to the LLM. No recognised piece enters it: it carries the voice, and its absence.
The LLM reads it behind all that it has read; what comes next takes its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from minmo.model.streaming import SlotState, is_there

STEP_EMBEDDINGS = 3
"""Speech embeddings of a step, each of which has one probe: 144 ms with those of `mini`."""


class Probes(NamedTuple):
    """Probes of the steps that a stretch of embeddings has completed.

    Attributes:
        embeddings: `[batch, probes, width]`, zeros behind the counts.
        steps: `[batch, probes]`, the number of each one's step in its stream: step i ends with
            embedding `(i + 1) * STEP_EMBEDDINGS`.
        counts: `[batch]`, how many there are.
    """

    embeddings: Tensor
    steps: Tensor
    counts: Tensor


@dataclass
class ProbingState(SlotState):
    """The step that each stream is in.

    Attributes:
        position: `[slots]`, embeddings read so far.
        total: `[slots, width]`, the sum of those of the step so far.
    """

    position: Tensor
    total: Tensor


def probes(embeddings: Tensor, lengths: Tensor) -> Probes:
    """The probes of whole clips; differentiable.

    Args:
        embeddings: `[batch, embeddings, width]`, of `RecognitionHead.as_large_as_text`.
        lengths: `[batch]`, how many of each clip are there. A last step that is not complete has
            no probe.
    """
    state = initial_state(
        embeddings.shape[0], embeddings.shape[2], embeddings.device, embeddings.dtype
    )
    return probe_step(embeddings, lengths, state)


def initial_state(
    slots: int, width: int, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> ProbingState:
    """The state of streams that start."""
    position = torch.zeros(slots, dtype=torch.int64, device=device)
    return ProbingState(position, torch.zeros(slots, width, device=device, dtype=dtype))


def probe_step(embeddings: Tensor, lengths: Tensor, state: ProbingState) -> Probes:
    """The probes of the next embeddings of each stream.

    Args:
        embeddings: `[slots, embeddings, width]`, of `RecognitionHead.as_large_as_text`.
        lengths: `[slots]`, how many of them are there.
        state: changed in place.

    Returns:
        Room for as many probes as can be completed.
    """
    slots, frames, width = embeddings.shape
    room = -(-frames // STEP_EMBEDDINGS)
    begun = state.position % STEP_EMBEDDINGS
    there = is_there(lengths, frames)
    # Within its step the first to come is added to what the stream remembers, one after the other:
    # a sum does not depend on how the stream was cut.
    step = (begun[:, None] + torch.arange(frames, device=lengths.device)) // STEP_EMBEDDINGS
    added = embeddings.masked_fill(~there[:, :, None], 0)
    totals = torch.cat((state.total[:, None], embeddings.new_zeros(slots, room, width)), dim=1)
    totals = totals.scatter_add(1, step[:, :, None].expand(-1, -1, width), added)
    counts = (begun + lengths) // STEP_EMBEDDINGS
    complete = is_there(counts, room)
    first = state.position // STEP_EMBEDDINGS
    numbers = first[:, None] + torch.arange(room, device=lengths.device)
    result = Probes(
        (totals[:, :room] / STEP_EMBEDDINGS).masked_fill(~complete[:, :, None], 0),
        numbers.masked_fill(~complete, 0),
        counts,
    )
    state.position.add_(lengths)
    state.total.copy_(totals.detach()[torch.arange(slots, device=lengths.device), counts])
    return result
