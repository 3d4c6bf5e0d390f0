"""Prepared weights into memory: mapped, not read, and checked for damage."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minmo.weights import home
from minmo.weights.aligned import ONLY_ALIGNED, aligned_folder, aligned_set
from minmo.weights.duplex import DUPLEX_MODULE, predictor_folder
from minmo.weights.errors import AbsentWeightsError, WeightsError
from minmo.weights.folder import is_whole, read_manifest
from minmo.weights.parts import packaged_parts, preset_name
from minmo.weights.spoken import SPOKEN_MODULES, TOKENIZER, tokenizer_folder, voice_set

if TYPE_CHECKING:
    from torch import Tensor

    from minmo.presets import Preset


def weights_folder(preset: "str | Preset", module: str) -> Path:
    """Return the folder of a module's prepared, imported or trained weights.

    Args:
        preset: a built-in name, the path of a TOML file, or the preset itself.
        module: a module of it, or a part that packages have.

    Raises:
        AbsentWeightsError: it is not there; says what to run.
        WeightsError: a file of it is missing or cut; the same.
    """
    name = preset_name(preset) if isinstance(preset, str) else preset.name
    part = next((part for part in packaged_parts(name) if part.name == module), None)
    if part is not None:
        folder, command = part.folder(name), _fetch_command(name, module)
    else:
        folder, command = _module_folder(preset, name, module)
    manifest = read_manifest(folder)
    if manifest is None and not folder.exists():
        raise AbsentWeightsError(f"the weights of {module} are not in {folder}; {command}")
    if manifest is None:
        raise WeightsError(f"{folder} has no manifest that can be read; {command}")
    if not is_whole(folder, manifest):
        raise WeightsError(f"{folder} has lost files or parts of them; {command}")
    return folder


def _fetch_command(preset: str, module: str) -> str:
    return f"run `minmo weights --preset {preset} --only {module}`"


def _module_folder(preset: "str | Preset", name: str, module: str) -> tuple[Path, str]:
    """Return where a module is that no package has, and how to get it."""
    from minmo.presets import PresetError, check_module, load_preset

    try:
        check_module(load_preset(preset) if isinstance(preset, str) else preset, module)
    except PresetError as error:
        raise WeightsError(str(error)) from error
    own, shared = home.module_folder(name, module), home.SHARED_FOLDER.get(module)
    if shared is not None and not own.exists():
        # The other half of a published checkpoint: it came with the half that names the folder.
        halves = home.module_folder(name, shared)
        manifest = read_manifest(halves)
        if manifest is not None and (module in manifest.hashes or not manifest.hashes):
            return halves, f"import {shared} again"
        if any(part.name == shared for part in packaged_parts(name)):
            return halves, _fetch_command(name, shared)
        if manifest is None and halves.exists():
            return halves, f"import {shared} again"
    if (trained := _folder_in_set(preset, module, own)) is not None:
        return trained, "train it again"
    command = f"run `minmo weights import FOLDER --preset {name} --module {module}`, or train it"
    return own, command


def _folder_in_set(preset: "str | Preset", module: str, own: Path) -> Path | None:
    """Return where a module is that was trained here as one of a set, if it was."""
    if module in SPOKEN_MODULES:
        root = voice_set(preset)
        return None if root is None else root / module
    if module == TOKENIZER:
        return tokenizer_folder(preset)
    if module in ONLY_ALIGNED and not own.exists() and aligned_set(preset) is not None:
        return aligned_folder(preset, module)
    if module == DUPLEX_MODULE:
        return predictor_folder(preset_name(preset) if isinstance(preset, str) else preset.name)
    return None


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of a prepared folder's `config.json`.

    Raises:
        WeightsError: it is missing or not JSON.
    """
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read {folder / 'config.json'}: {error}") from error
    return config


def load_state_dict(folder: Path) -> dict[str, "Tensor"]:
    """Map a prepared folder's tensors into memory, by their names, in the dtype of the file.

    Processes that load the same file share its pages until they write to a tensor or cast it.

    Raises:
        WeightsError: the file is missing, cut or damaged, or a tensor holds NaN or infinity; names
            the tensor.
    """
    from minmo.weights.reading import map_safetensors
    from minmo.weights.writing import FILE, check_finite

    path, advice = folder / FILE, f"delete {folder} and run `minmo weights`"
    tensors = map_safetensors(path, advice)
    for name, tensor in tensors.items():
        check_finite(name, tensor, path, advice)
    return tensors
