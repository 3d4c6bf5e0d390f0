"""Short stretches cut out of clips: a vocoder needs many of them more than it needs long ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Crops:
    """Where in a batch of clips so many stretches of one length lie.

    Every stretch is as likely as any other; all are as short as the shortest clip if need be.

    Args:
        frames: of each clip.
        count: stretches to draw, from PyTorch's default generator.
        size: frames of each.
    """

    def __init__(self, frames: Sequence[int], count: int, size: int) -> None:
        self.size = min(size, *frames)
        places = torch.tensor(frames, dtype=torch.float64) - self.size + 1
        self.clips: list[int] = torch.multinomial(places, count, replacement=True).tolist()
        chosen = torch.rand(count, dtype=torch.float64) * places[self.clips]
        self._starts: list[int] = chosen.long().tolist()

    def __call__(self, signals: Sequence[Tensor], hop: int = 1) -> Tensor:
        """The stretches of a signal.

        Args:
            signals: `[frames * hop, ...]` of each clip.
            hop: values of the signal for each frame.

        Returns:
            `[count, size * hop, ...]`.
        """
        return torch.stack(
            [
                signals[clip][start * hop : (start + self.size) * hop]
                for clip, start in zip(self.clips, self._starts, strict=True)
            ]
        )
