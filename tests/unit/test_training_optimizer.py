"""Muon beside AdamW: who moves what, and that both are saved and go on as one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import cast

import torch
from torch import nn

from minmo.training.config import OptimizerConfig, TrainingConfig
from minmo.training.muon import orthogonal
from minmo.training.optimizer import Joined, make_optimizer
from minmo.training.stage import Trainee


class Small(Trainee):
    """Two matrices of layers, one matrix elsewhere, a vector."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.ModuleDict(
            {
                "layers": nn.ModuleList([nn.Linear(6, 4), nn.Linear(4, 6, bias=False)]),
                "head": nn.Linear(6, 3, bias=False),
            }
        )

    def kept(self) -> Mapping[str, nn.Module]:
        return {"net": self.net}

    losses = evaluate = cast("None", None)  # type: ignore[assignment]

    def move(self, optimizer: torch.optim.Optimizer, steps: int) -> None:
        """Steps towards an output of zeros."""
        layers = cast(nn.ModuleList, self.net["layers"])
        for number in range(steps):
            torch.manual_seed(number)
            hidden = layers[1](layers[0](torch.randn(8, 6)).tanh())
            self.net["head"](hidden).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def optimizer_of(model: Small, method: str) -> torch.optim.Optimizer:
    settings = OptimizerConfig(method=method, learning_rates={"net": 0.01})  # type: ignore[arg-type]
    return make_optimizer(model, TrainingConfig("toy", optimizer=settings))[0]


def test_muon_moves_matrices_of_layers_in_all_directions_alike() -> None:
    model = Small()
    before = model.net["layers"][0].weight.clone()  # type: ignore[index]
    head = model.net["head"].weight.clone()  # type: ignore[union-attr]
    optimizer = optimizer_of(model, "muon")
    assert isinstance(optimizer, Joined)
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 1, 1]
    model.move(optimizer, 1)
    moved = (model.net["layers"][0].weight - before).detach()  # type: ignore[index, operator]
    sizes = torch.linalg.svdvals(moved)
    assert sizes[-1] > 0.4 * sizes[0]
    # AdamW's first step is as long for each weight.
    assert torch.allclose((model.net["head"].weight - head).abs(), torch.tensor(0.01), rtol=0.1)  # type: ignore[operator]


def test_what_was_saved_goes_on_as_it_would_have() -> None:
    whole, first, second = Small(), Small(), Small()
    whole.move(optimizer_of(whole, "muon"), 1)
    optimizer = optimizer_of(first, "muon")
    first.move(optimizer, 1)
    second.load_state_dict(first.state_dict())
    restored = optimizer_of(second, "muon")
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for model, one in ((first, optimizer), (second, restored)):
        for group in one.param_groups:
            group["lr"] = 0.02
        model.move(one, 3)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(next(whole.parameters()), next(first.parameters()))


def test_without_it_everything_is_adamw() -> None:
    assert isinstance(optimizer_of(Small(), "adamw"), torch.optim.AdamW)


def test_an_orthogonal_matrix_keeps_directions_and_evens_out_their_sizes() -> None:
    torch.manual_seed(0)
    left, right = torch.linalg.qr(torch.randn(20, 8)).Q, torch.linalg.qr(torch.randn(8, 8)).Q
    matrix = left @ torch.diag(torch.linspace(0.1, 3, 8)) @ right
    for found, wanted in (
        (orthogonal(matrix), left @ right),
        (orthogonal(matrix.T).T, left @ right),
    ):
        assert (
            torch.nn.functional.cosine_similarity(found.flatten(), wanted.flatten(), dim=0) > 0.95
        )
        sizes = torch.linalg.svdvals(found)
        assert sizes.min() > 0.6
        assert sizes.max() < 1.3
    assert not orthogonal(torch.zeros(3, 5)).any()
