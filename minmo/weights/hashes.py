"""What weights are, as one number: the sha256 of a module's tensors.

Two files with the same tensors have the same hash, whatever their header says and whichever
version of safetensors wrote them, so that a hash in a checkpoint means the same on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from minmo.weights.writing import blocks, dtype_names

if TYPE_CHECKING:
    from torch import Tensor


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Returns the hex digest over names, number types, shapes and values, in order of name."""
    names = dtype_names()
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        shape = "x".join(map(str, tensor.shape))
        digest.update(f"{name} {names[tensor.dtype]} {shape}\n".encode())
        for block in blocks(tensor):
            digest.update(block)
    return digest.hexdigest()
