"""Frames of a frozen voice encoder, kept: most of what a step costs, and the same every time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from minmo.training.batches import Batch
from minmo.training.listening import ListeningModel

_BYTES_A_MB = 1_000_000


class RememberedFrames:
    """Frames of each clip as it was first heard, in float16.

    Args:
        megabytes: of them at most; clips beyond are encoded each time.
    """

    def __init__(self, megabytes: float) -> None:
        self._room = int(megabytes * _BYTES_A_MB)
        self._known: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, model: ListeningModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """What `ListeningModel.frames` gives of a batch."""
        ids = [clip.id for clip in batch.clips]
        new = [number for number, clip in enumerate(ids) if clip not in self._known]
        found = {clip: self._known[clip] for clip in ids if clip in self._known}
        if new:
            frames, counts = model.frames(batch.samples[new], batch.lengths[new])
            for number, rows, count in zip(new, frames, counts.tolist(), strict=True):
                found[ids[number]] = kept = rows[:count].half().cpu()
                if kept.nbytes <= self._room:
                    self._room -= kept.nbytes
                    self._known[ids[number]] = kept
        device = batch.samples.device
        lengths = torch.tensor([len(found[clip]) for clip in ids], device=device)
        padded = pad_sequence([found[clip] for clip in ids], batch_first=True)
        return padded.to(device).float(), lengths
