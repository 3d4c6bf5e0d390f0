"""Padding to batch sizes whose numbers agree."""

from __future__ import annotations

import torch
from torch import Tensor

from minmo.engine.row_counts import RowCounts

CPU = torch.device("cpu")


def test_skips_the_counts_that_add_up_in_another_order() -> None:
    def linear(rows: Tensor) -> Tensor:
        odd = len(rows) in (1, 2, 7)
        return rows + (1e-7 if odd else 0.0)

    counts = RowCounts([(linear, 4)], 20, torch.float32, CPU)
    assert [counts.at_least(n) for n in (1, 2, 3, 6, 7, 8, 20)] == [3, 3, 3, 6, 8, 8, 20]


def test_all_layers_must_agree() -> None:
    def first(rows: Tensor) -> Tensor:
        return rows + (1e-7 if len(rows) == 3 else 0.0)

    def second(rows: Tensor) -> Tensor:
        return rows + (1e-7 if len(rows) == 4 else 0.0)

    counts = RowCounts([(first, 4), (second, 2)], 50, torch.float32, CPU)
    assert counts.at_least(3) == 5
    assert all(counts.at_least(n) >= n for n in range(51))


def test_the_linear_layers_of_this_machine_agree_at_the_counts_found() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(96, 160)
    rows = torch.randn(60, 96)
    with torch.inference_mode():
        counts = RowCounts([(linear, 96)], 40, torch.float32, CPU)
        results = [linear(rows[: counts.at_least(n)])[0] for n in range(1, 41)]
    assert all(torch.equal(result, results[0]) for result in results)
