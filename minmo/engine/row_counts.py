"""Batch sizes at which a sequence's numbers do not depend on the batch.

Matrix libraries choose a kernel by the number of rows, and some kernels add up in another order
than the rest. The same sequence would then give other last bits, and now and then another token,
depending on how many others are in the batch. Padding to a count whose kernel agrees with the
others makes a sequence's numbers its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_REFERENCES = 4
_ALL_UP_TO = 32
_STEP = 4


class RowCounts:
    """For every number of rows up to a limit, the next one that gives the common result.

    Args:
        linears: the layers in question, each with the width that it reads.
        limit: most rows that will be asked for.
        dtype: of the rows.
        device: of the rows.
    """

    def __init__(
        self,
        linears: Sequence[tuple[Callable[[Tensor], Tensor], int]],
        limit: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        counts = list(range(1, min(limit, _ALL_UP_TO) + _REFERENCES + 1))
        # Few rows are common and padding costs most there; for many, every fourth count will do.
        counts += range(counts[-1] + _STEP, limit + _STEP * _REFERENCES, _STEP)
        largest = counts[-1]
        # For each of the largest counts, those that agree with it in every layer.
        agreeing = {reference: set(counts) for reference in counts[-_REFERENCES:]}
        generator = torch.Generator().manual_seed(0)
        for linear, width in linears:
            rows = torch.randn(largest, width, generator=generator).to(device, dtype)
            results = {reference: linear(rows[:reference]) for reference in agreeing}
            for count in counts:
                result = linear(rows[:count])
                for reference, other in results.items():
                    shared = min(count, reference)
                    if not torch.equal(result[:shared], other[:shared]):
                        agreeing[reference].discard(count)
        common = max((sorted(group) for group in agreeing.values()), key=len)
        self._next = [next(c for c in common if c >= n) for n in range(min(limit, common[-1]) + 1)]

    def at_least(self, count: int) -> int:
        """The smallest common number of rows that is not below `count`."""
        return self._next[count]


def doublings(first: int, last: int) -> list[int]:
    """`first`, twice that, and so on, and `last`: sizes of recorded steps, few of them."""
    found = []
    while first < last:
        found.append(first)
        first *= 2
    return [*found, last]
