"""Linear layers whose weights take half the memory traffic, with the same values.

Decoding is bound by the memory that holds the weights. Where a float32 matrix came from a
float16 file, float16 holds it exactly; the packed layer reads that and still multiplies and adds
in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PackedLinear(nn.Module):
    """A float32 layer, `[rows, in]` to `[rows, out]`, that reads float16. Inference on a CPU."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        bias = None if linear.bias is None else linear.bias.float()
        self._packed = torch.ops.quantized.linear_prepack_fp16(linear.weight.float(), bias)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's outputs, float32."""
        out: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, self._packed)
        return out


def pack_linears(module: nn.Module) -> None:
    """Replaces, in place, every linear layer on the CPU that float16 holds exactly.

    Does nothing where this processor has no such kernels.
    """
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        return
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and _is_exact_in_half(child.weight):
                setattr(parent, name, PackedLinear(child))


def _is_exact_in_half(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or weight.dtype == torch.float16:
        return weight.device.type == "cpu"
    return torch.equal(weight.half().to(weight.dtype), weight)
