"""Frames of a frozen voice encoder, kept: most of what a step costs, and the same every time."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from minmo.training.batches import Batch
from minmo.training.config import TrainingConfig
from minmo.training.errors import TrainingError

_BYTES_A_MB = 1_000_000


class Encoding(Protocol):
    """What makes frames of clips."""

    def frames(self, samples: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Frames of clips, `[batch, frames, width]`, and how many of each."""


class RememberedFrames:
    """Frames of each clip as it was first heard, in float16.

    Args:
        megabytes: of them at most; clips beyond are encoded each time.
    """

    def __init__(self, megabytes: float) -> None:
        self._room = int(megabytes * _BYTES_A_MB)
        self._known: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, model: Encoding, batch: Batch) -> tuple[Tensor, Tensor]:
        """What `model.frames` gives of a batch."""
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


def check_remembering(config: TrainingConfig) -> None:
    """Refuses to keep frames that are not the same every time.

    Raises:
        TrainingError: says which setting would change them.
    """
    first, last = config.data.silence
    for changes, setting in (
        ("voice_encoder" in config.optimizer.learning_rates, "no learning rate of voice_encoder"),
        (first != last, "both ends of data.silence alike"),
        (config.augmentation.speed > 0, "augmentation.speed=0"),
    ):
        if changes:
            raise TrainingError(
                f"options.remember_mb keeps what was heard the first time: it needs {setting}, or "
                "set options.remember_mb=0"
            )
