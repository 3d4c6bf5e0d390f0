"""A running mean of the weights: steadier than the last ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Mean:
    """The running mean of parameters.

    Args:
        parameters: that are trained.
        decay: how much of the mean stays at each step.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self._parameters = list(parameters)
        self._decay = decay
        self.values = [one.detach().clone() for one in self._parameters]
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Takes the weights of a step in."""
        self.updates += 1
        # A short run would else keep its random start.
        decay = min(self._decay, self.updates / (10 + self.updates))
        current: list[Tensor] = [one.detach() for one in self._parameters]
        torch._foreach_lerp_(self.values, current, 1 - decay)

    @torch.no_grad()
    def restore(self, values: Sequence[Tensor], updates: int) -> None:
        """Goes on from what `values` and `updates` were."""
        for mean, value in zip(self.values, values, strict=True):
            mean.copy_(value)
        self.updates = updates

    @contextmanager
    @torch.no_grad()
    def in_place(self) -> Iterator[None]:
        """Puts the mean in the place of the weights for a while."""
        own = [one.detach().clone() for one in self._parameters]
        for parameter, mean in zip(self._parameters, self.values, strict=True):
            parameter.copy_(mean)
        try:
            yield
        finally:
            for parameter, value in zip(self._parameters, own, strict=True):
                parameter.copy_(value)
