"""Base weights as files of a bundle: of each module what training reads, tensor for tensor.

Number types stay as they are stored (the LLM of `mini` is kept in float16): what is trained
records the hashes of the modules that it was trained against.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

from minmo.presets import load_preset
from minmo.training.bundle.parts import Entry
from minmo.weights.folder import MANIFEST, read_manifest
from minmo.weights.home import VOICE
from minmo.weights.load import load_state_dict, weights_folder
from minmo.weights.naming import select
from minmo.weights.spoken import SPOKEN_MODULES, TOKENIZER
from minmo.weights.writing import FILE, write_safetensors

HOME = "home"
"""Folder of the bundle that is `MINMO_HOME` where it is unpacked."""


def weights(preset: str, modules: Iterable[str], scratch: Path) -> list[Entry]:
    """The files of modules' weights.

    Args:
        preset: its name, or the path of its TOML file.
        modules: by their names.
        scratch: an empty folder, in which files lie until the bundle is written.

    Raises:
        WeightsError: weights are missing or damaged.
        PresetError: there is no such preset.
    """
    entries = []
    for module in modules:
        entries += _module(preset, module, scratch)
    return entries


def _module(preset: str, module: str, scratch: Path) -> list[Entry]:
    loaded = load_preset(preset)
    folder = weights_folder(preset, module)
    manifest = read_manifest(folder)
    assert manifest is not None
    sources = {name: folder / name for name in manifest.files}
    stored = load_state_dict(folder)
    wanted = select(loaded, module, stored)
    if len(wanted) < len(stored):
        # The other half of a published checkpoint: nobody trains with it.
        sources[FILE] = scratch / f"{module}.safetensors"
        write_safetensors(sources[FILE], wanted, {})
    files = {name: path.stat().st_size for name, path in sources.items()}
    hashes = {name: digest for name, digest in manifest.hashes.items() if name == module}
    # Of an unpacked file the time of change is another: what is here is no longer the stamped one.
    manifest = replace(manifest, files=files, hashes=hashes, hashed_file=[])
    where = f"{HOME}/weights/{loaded.name}/{_place(module)}"
    text = json.dumps(asdict(manifest), indent=2) + "\n"
    return [
        Entry(f"{where}/{MANIFEST}", text.encode()),
        *(Entry(f"{where}/{name}", path) for name, path in sorted(sources.items())),
    ]


def _place(module: str) -> str:
    """Where a module lies: those of the voice in its set, which stages there go on with."""
    return f"{VOICE}/{module}" if module in (TOKENIZER, *SPOKEN_MODULES) else module
