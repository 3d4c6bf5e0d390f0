"""Weights to begin with: of an earlier stage's run, or of modules in the product's format."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from minmo.presets import load_preset, modules_of
from minmo.training.checkpoint import best, latest, trained_weights
from minmo.training.errors import TrainingError
from minmo.training.stage import Weights
from minmo.weights.load import load_state_dict
from minmo.weights.naming import prefix_of, select
from minmo.weights.writing import FILE


def initial_weights(preset_name: str, folder: Path) -> Weights:
    """State dicts of the modules that a folder has.

    Args:
        preset_name: the preset, by its name or the path of its TOML file.
        folder: of a run (its best weights count), or with a folder for each module.

    Raises:
        TrainingError: it is neither.
        WeightsError: a file is damaged.
    """
    if best(folder) or latest(folder):
        return trained_weights(folder)
    preset = load_preset(preset_name)
    weights: dict[str, dict[str, Tensor]] = {}
    for module in modules_of(preset):
        if (folder / module / FILE).exists():
            prefix = prefix_of(preset, module)
            tensors = select(preset, module, load_state_dict(folder / module))
            weights[module] = {key.removeprefix(prefix): value for key, value in tensors.items()}
    if not weights:
        raise TrainingError(
            f"--init {folder} has no weights: expected the --out folder of an earlier run, or a "
            f"folder with <module>/{FILE}, as `minmo train export` writes it"
        )
    return weights
