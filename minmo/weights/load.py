"""Prepared weights into memory: mapped, not read, and checked for damage."""

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minmo.weights.errors import WeightsError
from minmo.weights.folder import is_whole, read_manifest
from minmo.weights.parts import parts_of

if TYPE_CHECKING:
    from torch import Tensor

_FILE = "model.safetensors"


def weights_folder(preset: str, module: str) -> Path:
    """Return the folder of a module's prepared weights.

    Raises:
        WeightsError: it is not prepared, or a file of it is missing or cut; says what to run.
    """
    (part,) = parts_of(preset, (module,))
    folder = part.folder(preset)
    manifest = read_manifest(folder)
    command = f"minmo weights --preset {preset} --only {module}"
    if manifest is None:
        raise WeightsError(f"the weights of {module} are not in {folder}; run `{command}`")
    if not is_whole(folder, manifest):
        raise WeightsError(f"{folder} has lost files or parts of them; run `{command}`")
    return folder


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
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / _FILE
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        cut = _first_cut_tensor(path)
        where = f" at tensor {cut!r}" if cut else ""
        raise WeightsError(
            f"cannot load {path}: it is missing, cut or damaged{where} ({error}); delete {folder} "
            "and run `minmo weights`"
        ) from error
    for name, tensor in tensors.items():
        # The extremes are NaN where any value is, and find it ten times faster than isfinite.
        if tensor.numel() and not all(torch.isfinite(end) for end in torch.aminmax(tensor)):
            raise WeightsError(
                f"{path} holds NaN or infinity in tensor {name!r}; delete {folder} and run "
                "`minmo weights`"
            )
    return tensors


def _first_cut_tensor(path: Path) -> str | None:
    """Return the first tensor whose bytes lie behind the end of the file, if the header tells."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, path.stat().st_size)))
        room = path.stat().st_size - 8 - length
        behind = {
            entry["data_offsets"][1]: name
            for name, entry in header.items()
            if name != "__metadata__" and entry["data_offsets"][1] > room
        }
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None
    return behind[min(behind)] if behind else None
