"""A MINMO_HOME in which `mini` has a full-duplex predictor, one that always says the same."""

from __future__ import annotations

import math
from pathlib import Path
from typing import cast

import torch

from minmo.model.duplex_predictor import DuplexPredictor
from minmo.model.operating_points import OperatingPoint, to_metadata
from minmo.weights import home
from minmo.weights.modules import random_module, write_module

POINTS = (
    OperatingPoint(0.0, 0.9, 0.8),
    OperatingPoint(0.5, 0.5, 0.6),
    OperatingPoint(1.0, 0.2, 0.3),
)
"""What it says that its thresholds are."""


def predictor_of(answer: float, stop: float) -> DuplexPredictor:
    """One that always gives these probabilities of assistant and user turn-taking."""
    predictor = cast("DuplexPredictor", random_module("mini", "duplex_predictor"))
    odds = [0.0, math.log(answer / (1 - answer)), 0.0, math.log(stop / (1 - stop))]
    with torch.no_grad():
        predictor.head.weight.zero_()
        predictor.head.bias.copy_(torch.tensor(odds))
    return predictor


def duplex_home(folder: Path, predictor: DuplexPredictor) -> Path:
    """Fills `folder` with links to the weights that are here, and with a predictor; returns it.

    A folder that has weights already gets the predictor.
    """
    weights = folder / "weights" / "mini"
    if not weights.exists():
        weights.mkdir(parents=True)
        for path in home.module_folder("mini", "").iterdir():
            if path.name != "duplex_predictor":
                (weights / path.name).symlink_to(path)
        for name in ("triton", "tools"):
            if (home.home() / name).exists():
                (folder / name).symlink_to(home.home() / name)
    target = weights / "duplex_predictor"
    if target.is_symlink():
        target.unlink()
    write_module(
        "mini",
        "duplex_predictor",
        predictor,
        folder=target,
        dtype=torch.float16,
        metadata=to_metadata(POINTS),
    )
    return folder
