"""Weights of an earlier run or stage, put into a module that goes on from them."""

from __future__ import annotations

from torch import nn

from minmo.training.errors import TrainingError
from minmo.training.stage import StateDict


def fill(module: nn.Module, name: str, state: StateDict) -> None:
    """Gives a module its weights, float32.

    Args:
        module: of the preset.
        name: of it, for messages.
        state: its state dict.

    Raises:
        TrainingError: they are of a module of other sizes.
    """
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise TrainingError(
            f"the weights of {name} to begin with are of another preset: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    module.float()
