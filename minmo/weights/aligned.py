"""Aligned weights: the modules that were trained together so that the LLM listens to speech.

They are a set: a voice encoder that was adapted to its stream, the input projector that reads it,
and the recognition head that reads that. The pretrained voice encoder, which the recogniser of the
cascade needs, stays where it is, so both can be loaded:

    load_module(preset, "voice_encoder")                                           # pretrained
    load_module(preset, "voice_encoder", folder=aligned_folder(preset, "voice_encoder"))

A set that was trained here, in `MINMO_HOME`, comes before the one that MinMo brings; sets are never
mixed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from minmo.weights import home
from minmo.weights.errors import AbsentWeightsError, WeightsError
from minmo.weights.folder import Source, is_whole, read_manifest, replaced
from minmo.weights.parts import preset_name

if TYPE_CHECKING:
    import torch
    from torch import nn

    from minmo.presets import Preset

log = logging.getLogger(__name__)

ALIGNED_MODULES = ("voice_encoder", "input_projector", "recognition_head")
"""The modules of a set, each trained against those before it."""
ONLY_ALIGNED = ("input_projector", "recognition_head")
"""Those of them that nobody has pretrained: what reads speech for the LLM, trained through it."""
READER = "recognizer"
"""What the voice encoder of a set was trained against if the recogniser reads along."""


def packaged_set(preset: str) -> Path:
    """Return where MinMo itself would bring the set of the preset of this name."""
    # `minmo.presets` itself would bring PyTorch.
    return Path(str(files("minmo"))) / "presets" / "trained" / preset


def aligned_set(preset: str | Path | Preset) -> Path | None:
    """Return the folder of the set that counts: one made here, else MinMo's; None for neither.

    Only names are looked at.

    Args:
        preset: a built-in name, the path of a TOML file, or the preset itself.

    Raises:
        WeightsError: there is no such preset.
    """
    name = _name(preset)
    own, brought = home.aligned_folder(name), packaged_set(name)
    if own.is_dir():
        return own
    # MinMo may bring a preset's voice, in the same folder, and no set.
    return brought if any((brought / module).is_dir() for module in ALIGNED_MODULES) else None


def aligned_folder(preset: str | Path | Preset, module: str) -> Path:
    """Return the folder of one of the aligned modules, to be loaded from.

    Only names and sizes of files are looked at, so that a process that does without PyTorch can
    ask.

    Args:
        preset: a built-in name, the path of a TOML file, or the preset itself.
        module: one of `ALIGNED_MODULES`.

    Raises:
        AbsentWeightsError: nobody has aligned this preset, here or in MinMo.
        WeightsError: there is no such preset or module, or a module of the set is missing or cut.
    """
    if module not in ALIGNED_MODULES:
        raise WeightsError(f"{module!r} is no aligned module; those are: {_listed()}")
    name, root = _name(preset), aligned_set(preset)
    if root is None:
        raise AbsentWeightsError(
            f"preset {name!r} has not been taught to listen: {home.aligned_folder(name)} is not "
            f"there; train {_listed()} for it"
        )
    for member in ALIGNED_MODULES:
        manifest = read_manifest(root / member)
        if manifest is None or not is_whole(root / member, manifest):
            what = "has no" if manifest is None else "has lost files of its"
            raise WeightsError(f"{root} {what} {member}; {_repair(name, root)}")
    return root / module


def check_aligned(preset: str | Path | Preset) -> None:
    """Refuses a set that is not whole, or whose modules or LLM are others than in its training.

    The first time in a process this computes the hash of the LLM where no manifest states it.

    Raises:
        AbsentWeightsError: there is no set, or no LLM.
        WeightsError: says what is missing, or expected and found.
    """
    from minmo.weights.load import weights_folder
    from minmo.weights.modules import check_trained_against

    folders = [aligned_folder(preset, module) for module in ALIGNED_MODULES]
    weights_folder(os.fspath(preset) if isinstance(preset, Path) else preset, "llm")
    for module, folder in zip(ALIGNED_MODULES, folders, strict=True):
        check_trained_against(preset, module, folder)


def reads_along(folder: Path) -> bool:
    """Say whether the recogniser reads along, from the folder of a set's voice encoder.

    Raises:
        WeightsError: its file is missing or damaged.
    """
    from minmo.weights.modules import trained_against

    return READER in trained_against(folder)


def has_aligned(preset: str | Path | Preset) -> bool:
    """Say whether a preset can listen: all that takes is here and was trained together.

    Why not is logged where something is here that cannot be used.

    Raises:
        WeightsError: there is no such preset.
    """
    _name(preset)
    try:
        check_aligned(preset)
    except AbsentWeightsError:
        return False
    except WeightsError as error:
        log.warning("%s", error)
        return False
    return True


def write_aligned(
    preset: str | Path | Preset,
    modules: Mapping[str, nn.Module],
    *,
    sources: Iterable[Source] = (),
    folder: Path | None = None,
    dtype: torch.dtype | None = None,
    reading_along: bool = False,
) -> Path:
    """Writes a set; it replaces an older one as a whole or not at all.

    Args:
        preset: that the modules were built from.
        modules: every one of `ALIGNED_MODULES`, by its name.
        sources: what they were trained on, for the manifests.
        folder: of the set; None for where `aligned_folder` finds it first.
        dtype: to store floating-point weights in; None for float16.
        reading_along: whether the voice encoder was adapted for the recogniser to read along; the
            set works with that recogniser alone.

    Returns:
        The folder of the set.

    Raises:
        WeightsError: a module is missing, left over or does not fit the preset, the LLM that they
            were trained with is not here, or the folder cannot be written.
    """
    import torch

    from minmo.presets import Preset, load_preset
    from minmo.weights.modules import module_sha256, write_module

    if not isinstance(preset, Preset):
        preset = load_preset(preset)
    if set(modules) != set(ALIGNED_MODULES):
        given = ", ".join(modules) or "nothing"
        raise WeightsError(f"an aligned set is {_listed()}, all of them; given: {given}")
    root = home.aligned_folder(preset.name) if folder is None else folder
    llm = {"llm": module_sha256(preset, "llm")}
    reader = {READER: module_sha256(preset, READER)} if reading_along else {}
    hashes: dict[str, str] = {}
    with replaced(root) as unfinished:
        for module in ALIGNED_MODULES:
            against = hashes | llm if module in ONLY_ALIGNED else reader
            written = write_module(
                preset,
                module,
                modules[module],
                trained_against=against,
                sources=tuple(sources),
                folder=unfinished / module,
                dtype=torch.float16 if dtype is None else dtype,
            )
            hashes = {**hashes, module: module_sha256(preset, module, written)}
    return root


def _name(preset: str | Path | Preset) -> str:
    # A `Preset` is not asked for by its class, which comes with PyTorch.
    return preset_name(os.fspath(preset)) if isinstance(preset, str | Path) else preset.name


def _listed() -> str:
    return f"{', '.join(ALIGNED_MODULES[:-1])} and {ALIGNED_MODULES[-1]}"


def _repair(name: str, root: Path) -> str:
    if root == home.aligned_folder(name):
        return f"train the set again, or delete {root}"
    return "install MinMo again"
