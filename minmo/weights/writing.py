"""Writing a safetensors file tensor by tensor: memory stays that of the largest one."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minmo.weights.errors import WeightsError
from minmo.weights.progress import NoProgress, Progress

if TYPE_CHECKING:
    from torch import Tensor

FILE = "model.safetensors"
_BLOCK_BYTES = 1 << 24


def dtype_names() -> dict[Any, str]:
    """What safetensors calls the number types that weights have."""
    import torch

    return {
        torch.float64: "F64",
        torch.float32: "F32",
        torch.float16: "F16",
        torch.bfloat16: "BF16",
        torch.int64: "I64",
        torch.int32: "I32",
        torch.int16: "I16",
        torch.int8: "I8",
        torch.uint8: "U8",
        torch.bool: "BOOL",
    }


def blocks(tensor: Tensor) -> Iterator[memoryview]:
    """Yields a tensor's bytes, row by row in C order, little-endian."""
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    step = max(1, _BLOCK_BYTES // flat.element_size())
    for start in range(0, len(flat), step):
        # NumPy knows no bfloat16; bytes it knows.
        yield flat[start : start + step].view(torch.uint8).numpy().data


def check_finite(name: str, tensor: Tensor, path: Path, advice: str) -> None:
    """Refuses NaN and infinity.

    Args:
        name: of the tensor, for the message.
        tensor: any shape and number type.
        path: the file that it comes from.
        advice: what to do about it.

    Raises:
        WeightsError: there is one.
    """
    import torch

    # The extremes are NaN where any value is, and find it ten times faster than isfinite.
    if (
        tensor.is_floating_point()
        and tensor.numel()
        and not all(torch.isfinite(end) for end in torch.aminmax(tensor))
    ):
        raise WeightsError(f"{path} holds NaN or infinity in tensor {name!r}; {advice}")


def write_safetensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    progress: Progress | None = None,
    task: str = "",
) -> None:
    """Writes tensors; those that are mapped from files are read one by one.

    Args:
        path: a new file.
        tensors: by their names.
        metadata: texts for the file's header, beside `format`.
        progress: hears how far it is.
        task: what it hears of.

    Raises:
        WeightsError: a tensor holds NaN or infinity, or a number type that weights don't have.
        OSError: it cannot be written.
    """
    progress = progress or NoProgress()
    names = dtype_names()
    # Wide types first, so that each tensor lies at a multiple of its element's size.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    offset = 0
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in names:
            known = ", ".join(names.values())
            raise WeightsError(f"tensor {name!r} is {tensor.dtype}; weights are kept as {known}")
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    done = 0
    progress.started(task, offset)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            check_finite(name, tensors[name], path, "the weights that it was to hold are damaged")
            for block in blocks(tensors[name]):
                done += file.write(block)
                progress.reached(task, done)
    progress.finished(task)
