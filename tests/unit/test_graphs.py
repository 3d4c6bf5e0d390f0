"""Calls with fixed shapes; on a machine with a GPU they are recordings."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minmo.engine.graphs import GraphedCall

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
@torch.inference_mode()
def test_every_call_computes_from_its_own_inputs_and_changes_what_the_function_changes(
    device: str,
) -> None:
    total = torch.zeros(3, device=device)

    def add(numbers: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        total.add_(numbers * there)
        return numbers * 2, total.clone()

    zeros = torch.zeros(3, device=device)
    call = GraphedCall(add, (zeros, zeros))
    assert total.tolist() == [0.0, 0.0, 0.0]
    doubled, sums = call(torch.tensor([1.0, 2.0, 3.0]).to(device), torch.ones(3, device=device))
    assert doubled.tolist() == [2.0, 4.0, 6.0] and sums.tolist() == [1.0, 2.0, 3.0]
    doubled, sums = call(torch.ones(3, device=device), torch.tensor([0.0, 1.0, 1.0]).to(device))
    assert doubled.tolist() == [2.0, 2.0, 2.0] and sums.tolist() == [1.0, 3.0, 4.0]
