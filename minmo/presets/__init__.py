"""Presets: the sizes of the network, read from a page of TOML and checked.

`load_preset("8b")` gives every module's config; `build_module(preset, "vocoder")` the module.
"""

from minmo.presets.build import build_module, check_module, modules_of
from minmo.presets.building import NothingDrawn, SizesOnly
from minmo.presets.errors import PresetError, Problem
from minmo.presets.preset import (
    MODULES,
    TABLES,
    Preset,
    built_in_presets,
    load_preset,
    parse_preset,
    with_text_table,
)

__all__ = [
    "MODULES",
    "TABLES",
    "NothingDrawn",
    "Preset",
    "PresetError",
    "Problem",
    "SizesOnly",
    "build_module",
    "built_in_presets",
    "check_module",
    "load_preset",
    "modules_of",
    "parse_preset",
    "with_text_table",
]
