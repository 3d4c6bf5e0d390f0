"""How a stack listens: the LLM reads speech itself, or text that a recogniser wrote down."""

from __future__ import annotations

from typing import Literal

from minmo.weights.aligned import aligned_folder, aligned_set
from minmo.weights.parts import preset_name

Mode = Literal["cascade", "aligned"]
WantedMode = Literal["auto", "cascade", "aligned"]

ALIGNED_BY_DEFAULT: frozenset[str] = frozenset()
"""Presets whose aligned weights were measured to answer spoken questions as well as their cascade
does: for them `auto` is aligned mode, wherever the weights are."""


def chosen(wanted: WantedMode, preset: str) -> Mode:
    """The mode that a stack runs in.

    Args:
        wanted: what the user said.
        preset: a built-in name, or the path of a TOML file.

    Raises:
        WeightsError: aligned mode is wanted and its weights are not here.
    """
    if wanted == "aligned":
        aligned_folder(preset, "voice_encoder")
        return "aligned"
    if wanted == "auto" and preset_name(preset) in ALIGNED_BY_DEFAULT and aligned_set(preset):
        return "aligned"
    return "cascade"
