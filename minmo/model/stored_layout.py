"""Weights that are computed with in one layout and stored in the one that others publish.

A state dict always has the published names and shapes: weights are rearranged when one is loaded
and arranged back when one is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_KINDS = ("weight", "bias")


def store_apart(module: nn.Module, fused: str, parts: Sequence[str]) -> None:
    """Stores a linear layer of a module as the several layers that it computes at once.

    Args:
        module: that has the layer.
        fused: the layer's name in it.
        parts: names of the layers to store; each has as many outputs as the others.
    """

    def join(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
        for kind in _KINDS:
            names = [f"{prefix}{part}.{kind}" for part in parts]
            if all(name in state for name in names):
                state[f"{prefix}{fused}.{kind}"] = torch.cat([state.pop(name) for name in names])

    def part(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
        for kind in _KINDS:
            joined = state.pop(f"{prefix}{fused}.{kind}", None)
            if joined is not None:
                for name, piece in zip(parts, joined.chunk(len(parts)), strict=True):
                    state[f"{prefix}{name}.{kind}"] = piece

    module.register_load_state_dict_pre_hook(join)  # type: ignore[no-untyped-call]
    module.register_state_dict_post_hook(part)  # type: ignore[no-untyped-call]


class WindowConv(nn.Module):
    """A convolution of stride 1 without padding, as one matrix product over windows of frames.

    For the few frames of a step this costs a fraction of what a convolution's own kernels cost.
    It is stored as `nn.Conv1d` stores it, `[out_channels, in_channels, kernel_size]`.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.kernel_size = kernel_size
        drawn = nn.Conv1d(in_channels, out_channels, kernel_size)
        self.weight = nn.Parameter(drawn.weight.detach().transpose(1, 2).flatten(1))
        self.bias = nn.Parameter(drawn.bias.detach()) if drawn.bias is not None else None
        self.register_load_state_dict_pre_hook(_flatten)  # type: ignore[no-untyped-call]
        self.register_state_dict_post_hook(_unflatten)  # type: ignore[no-untyped-call]

    def forward(self, frames: Tensor) -> Tensor:
        """`[..., frames + kernel_size - 1, in_channels]` to `[..., frames, out_channels]`."""
        if self.kernel_size > 1:
            frames = frames.unfold(-2, self.kernel_size, 1).transpose(-1, -2).flatten(-2)
        return F.linear(frames, self.weight, self.bias)


def _flatten(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    weight = state.get(f"{prefix}weight")
    if weight is not None:
        state[f"{prefix}weight"] = weight.transpose(1, 2).flatten(1)


def _unflatten(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    assert isinstance(module, WindowConv)
    weight = state[f"{prefix}weight"].unflatten(1, (module.kernel_size, module.in_channels))
    state[f"{prefix}weight"] = weight.transpose(1, 2).contiguous()
