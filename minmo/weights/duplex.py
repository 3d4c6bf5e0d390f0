"""The full-duplex predictor as a file: its weights, what it was trained against, its thresholds.

It works with the aligned modules and the LLM whose hidden states it learned to read, and with no
others. One that was trained here, in `MINMO_HOME`, comes before the one that MinMo brings.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from minmo.weights import home
from minmo.weights.aligned import ALIGNED_MODULES, aligned_folder
from minmo.weights.folder import Source

if TYPE_CHECKING:
    from torch import nn

    from minmo.model.operating_points import OperatingPoint
    from minmo.presets import Preset

DUPLEX_MODULE = "duplex_predictor"


def packaged_predictor(preset: str) -> Path:
    """Return where MinMo itself would bring the predictor of the preset of this name."""
    # `minmo.presets` itself would bring PyTorch.
    return Path(str(files("minmo"))) / "presets" / "trained" / preset / DUPLEX_MODULE


def predictor_folder(preset: str) -> Path | None:
    """Return the folder of the predictor that counts: one made here, else MinMo's; or None."""
    places = (home.module_folder(preset, DUPLEX_MODULE), packaged_predictor(preset))
    return next((place for place in places if place.is_dir()), None)


def listening_hashes(preset: str | Path | Preset) -> dict[str, str]:
    """Return the hashes of the modules that make the hidden states which a predictor reads.

    Raises:
        AbsentWeightsError: the preset has not been taught to listen, or its LLM is not here.
        WeightsError: they are damaged.
    """
    from minmo.weights.modules import module_sha256

    hashes = {
        name: module_sha256(preset, name, aligned_folder(preset, name)) for name in ALIGNED_MODULES
    }
    return {**hashes, "llm": module_sha256(preset, "llm")}


def write_duplex(
    preset: str | Path | Preset,
    predictor: nn.Module,
    points: Sequence[OperatingPoint],
    *,
    sources: Iterable[Source] = (),
    folder: Path | None = None,
) -> Path:
    """Writes a predictor, float16; its folder appears whole or not at all.

    Args:
        preset: that it was built from.
        predictor: with its weights.
        points: its thresholds, chosen on a development set.
        sources: what it was trained on, for the manifest.
        folder: of the module; None for where it is found first.

    Returns:
        The folder.

    Raises:
        WeightsError: the predictor does not fit the preset, or what it was trained against is not
            here.
    """
    import torch

    from minmo.model.operating_points import to_metadata
    from minmo.presets import Preset, load_preset
    from minmo.weights.modules import write_module

    if not isinstance(preset, Preset):
        preset = load_preset(os.fspath(preset))
    return write_module(
        preset,
        DUPLEX_MODULE,
        predictor,
        trained_against=listening_hashes(preset),
        sources=tuple(sources),
        folder=folder,
        dtype=torch.float16,
        metadata=to_metadata(points),
    )
