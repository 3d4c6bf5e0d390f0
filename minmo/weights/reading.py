"""Files of tensors that others published, mapped into memory rather than read."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from minmo.weights.errors import WeightsError
from minmo.weights.progress import Progress
from minmo.weights.writing import FILE

INDEX = f"{FILE}.index.json"
_BLOCK_BYTES = 1 << 24


def weights_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a folder: one, or the shards that its index names.

    Raises:
        WeightsError: there are none, or a shard is missing.
    """
    index = folder / INDEX
    if not index.exists():
        if (folder / FILE).exists():
            return (folder / FILE,)
        raise WeightsError(f"{folder} has neither {FILE} nor {INDEX}; get the rest of it")
    names = sorted(set(read_json(index).get("weight_map", {}).values()))
    shards = tuple(folder / Path(name).name for name in names)
    missing = [shard.name for shard in shards if not shard.exists()]
    if missing or not shards:
        named = ", ".join(missing) or "any shard"
        raise WeightsError(f"{folder} has not {named}, which {INDEX} names; get the rest of it")
    return shards


def map_safetensors(path: Path, advice: str) -> dict[str, Tensor]:
    """Maps a file's tensors, by their names, in the file's number type.

    Args:
        path: of the file.
        advice: what to do where it is damaged.

    Raises:
        WeightsError: it is missing, cut or damaged; names the first tensor that is not whole.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        cut = _first_cut_tensor(path)
        where = f" at tensor {cut}" if cut else ""
        raise WeightsError(
            f"cannot load {path}: it is missing, cut or damaged{where} ({error}); {advice}"
        ) from error


def load_torch(path: Path) -> Any:
    """What a file holds that `torch.save` wrote, its tensors mapped; nothing in it is executed.

    Raises:
        WeightsError: it is missing, damaged, or holds more than tensors and plain values.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        # What PyTorch advises here, to execute what the file says, is not repeated.
        raise WeightsError(
            f"cannot load {path}: it is cut, damaged, or holds more than tensors and plain values, "
            "which could run code and is not read; get it again from where it was published"
        ) from error


def map_torch(path: Path) -> dict[str, Tensor]:
    """Maps the tensors of a file that `torch.save` wrote; nothing in it is executed.

    A state dict that lies under a usual name, as training scripts leave it, is taken out.

    Raises:
        WeightsError: it is missing, damaged, or holds something else than tensors.
    """
    content = load_torch(path)
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not tensors by name")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(f"{path} holds no tensors by name")
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file that holds an object.

    Raises:
        WeightsError: it is missing or something else.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"cannot read {path}: it holds no JSON object")
    return content


def read_mean_and_variance(path: Path) -> tuple[Tensor, Tensor]:
    """Reads FunASR's `am.mvn`: what is added to each feature, and by what the sum is multiplied.

    The file is the text form of a network of Kaldi's, of which only the two vectors matter.

    Raises:
        WeightsError: it is missing, or lacks a vector.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(
            f"cannot read {path}, which goes with model.pt: {error}; get it from the same place"
        ) from error
    vectors = []
    for layer in ("AddShift", "Rescale"):
        numbers = re.search(rf"<{layer}>[^\[]*\[([^\]]*)\]", text)
        if numbers is None:
            raise WeightsError(f"{path} has no <{layer}>; get it again from its place")
        vectors.append(torch.tensor([float(number) for number in numbers[1].split()]))
    return vectors[0], vectors[1]


def file_sha256(paths: Iterable[Path], progress: Progress) -> dict[Path, str]:
    """The hex digest of each file."""
    digests = {}
    for path in paths:
        task = f"checksum of {path.name}"
        progress.started(task, path.stat().st_size)
        digest, done = hashlib.sha256(), 0
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
                done += len(block)
                progress.reached(task, done)
        progress.finished(task)
        digests[path] = digest.hexdigest()
    return digests


def _is_zip(path: Path) -> bool:
    """Whether it has the form that can be mapped; older versions of PyTorch wrote another."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _first_cut_tensor(path: Path) -> str | None:
    """The first tensor whose bytes lie behind the end of the file, if the header tells."""
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
    if not behind:
        return None
    end = min(behind)
    return f"{behind[end]!r}, which ends at byte {8 + length + end} of {path.stat().st_size}"
