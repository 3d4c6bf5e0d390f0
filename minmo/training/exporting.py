"""From a run to modules in the product's format."""

from __future__ import annotations

from pathlib import Path

from minmo.training.checkpoint import CONFIG, trained_weights
from minmo.training.config import load_config
from minmo.training.stage import stages


def export_run(run: Path, folder: Path | None) -> Path:
    """Writes the best weights of a run.

    Args:
        run: its folder.
        folder: for the modules' folders; None for where the product finds them first.

    Returns:
        The folder.

    Raises:
        TrainingError: there is no run or no checkpoint, or it is damaged.
        WeightsError: the modules cannot be written.
    """
    weights = trained_weights(run)
    config = load_config(run / CONFIG)
    return stages()[config.stage].export(config, weights, folder)
