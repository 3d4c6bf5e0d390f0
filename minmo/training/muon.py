"""Muon: gradient steps whose singular values are all alike (Jordan et al., 2024)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# Of a quintic that moves singular values of 0 to 1 quickly to about 1.
_COEFFICIENTS = (3.4445, -4.775, 2.0315)
_ITERATIONS = 5
# AdamW's steps are about this large in each weight, so that one rate is right for both (Liu et
# al., 2025).
_SIZE = 0.2


class Muon(torch.optim.Optimizer):
    """Moves matrices by the orthogonal matrix that is nearest to their gradients' running mean.

    `torch.optim.Muon` computes in bfloat16, for which processors without matrix units take twice
    as long as for float32; it is a quarter of a step of `mini`.

    Args:
        groups: with `params`, matrices, `lr` and `weight_decay`.
        momentum: of the running mean.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], momentum: float) -> None:
        super().__init__(groups, {"momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Moves every matrix that has a gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)
        return loss

    def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        mean: Tensor = state["momentum_buffer"]
        mean.lerp_(gradient, 1 - group["momentum"])
        # Nesterov's: a look at where the mean will be.
        direction = orthogonal(gradient.lerp(mean, group["momentum"]))
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        size = _SIZE * math.sqrt(max(parameter.shape))
        parameter.add_(direction, alpha=-group["lr"] * size)


def orthogonal(matrix: Tensor) -> Tensor:
    """About the nearest orthogonal matrix, by Newton and Schulz's iteration.

    Args:
        matrix: `[rows, columns]`.
    """
    first, second, third = _COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    found = matrix.T if tall else matrix
    if found.is_cuda:
        found = found.bfloat16()
    found = found / found.norm().clamp(min=1e-7)
    for _ in range(_ITERATIONS):
        square = found @ found.T
        found = torch.addmm(
            found, torch.addmm(square, square, square, beta=second, alpha=third), found, beta=first
        )
    return (found.T if tall else found).to(matrix.dtype)
